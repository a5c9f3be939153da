-- Until when those who wait have to start: so that a wait that got worse is judged again only where that may matter.

alter table waitline.tenant add column tightest bigint;
comment on column waitline.tenant.tightest is 'When the first of its waiting jobs has to start by its policy, or earlier, never later; null if none has to. Of no meaning while none waits.';

create function waitline.tightest(owner text) returns bigint
    language sql stable as $$
    -- In line, at a gate or at none, in backoff, and behind another one of its session. After a try it waits anew.
    select min(least(greatest(arrival, slot)::numeric + max_wait, 4611686018427387904))::bigint
    from (
        select arrival, slot, max_wait from waitline.job where tenant = owner and place is not null
        union all
        select arrival, slot, max_wait from waitline.job where tenant = owner and turn is not null
        union all
        select arrival, slot, max_wait from waitline.job where tenant = owner and place is null and returns is not null
        union all
        select arrival, slot, max_wait from waitline.job where tenant = owner and session is not null and state = 0
    ) as j
    where max_wait is not null
$$;
comment on function waitline.tightest is 'When the first of a tenant''s waiting jobs has to start, exactly: a walk over all of them.';

update waitline.tenant set tightest = waitline.tightest(name) where waiting > 0;
