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

do $$
declare
    text text := pg_get_functiondef('waitline.submit_plain'::regproc);
    pieces text[] := array[
        'sooner boolean := false;', 'sooner boolean := false;
    tight bigint;
    tights bigint[];',
        'for ahead in t.waiting', 'tight := null;
        for ahead in t.waiting',
        'owners[n] := t.name;', 'tight := least(tight, max_waits[n]);
            owners[n] := t.name;',
        'sooner := sooner or', 'tights := tights || case when tight is not null then least(arrived::numeric + tight, 4611686018427387904)::bigint end;
        sooner := sooner or',
        'due = least(due, greatest(clock, as_of))
    from unnest(names, units, jobs) as u (name, unit, jobs)', 'due = least(due, greatest(clock, as_of)),
        tightest = least(case when waiting > 0 then tightest end, u.tight)
    from unnest(names, units, jobs, tights) as u (name, unit, jobs, tight)'
    ];
begin
    for at in 1 .. cardinality(pieces) by 2 loop
        if length(text) - length(replace(text, pieces[at], '')) <> length(pieces[at]) then
            raise exception 'waitline.submit_plain is not the function that it was';
        end if;
        text := replace(text, pieces[at], pieces[at + 1]);
    end loop;
    execute text;
end
$$;
