-- What a claim decides over, in one round trip.

create function waitline.due_lines(about bigint, names text[], tenants integer, slots integer, longest integer)
returns table (
    now bigint, tenant text, quota text, zeros text, work text, running integer, waiting integer, as_of bigint,
    due bigint, echo text, next_return bigint, homes boolean, most integer,
    id bigint, arrival bigint, promised bigint, head_start bigint, deadline bigint, max_wait bigint, cost bigint[],
    session text, paid boolean, home text, returns bigint, holder bigint, call smallint, place bigint
)
    language plpgsql volatile as $$
#variable_conflict use_column
declare
    found text[];
    clock bigint;
    each integer;
begin
    -- Oldest first, and nobody that another one is busy with.
    if names is null then
        found := array(
            select t.name from waitline.tenant as t where t.due <= about order by t.due limit tenants for update skip locked
        );
    else
        found := array(
            select t.name
            from waitline.tenant as t
            where t.name = any(names) and t.due <= about
            order by t.due
            limit tenants
            for update skip locked
        );
    end if;
    if cardinality(found) = 0 then
        return;
    end if;
    -- Statements of their own from here on, so that they see what was committed while the locks were waited for.
    clock := waitline.now_ns();
    -- One more than its share, so that a line that goes on tells when.
    each := least(longest, (slots + cardinality(found) - 1) / cardinality(found) + 1);
    return query
        select
            clock, t.name, t.quota, t.zeros::text, t.work::text, t.running, t.waiting, t.as_of, t.due, t.echo,
            (select min(j.returns) from waitline.job as j where j.tenant = t.name and j.place is null and j.returns > clock),
            -- Not `exists`, which may be planned as a walk over all callers.
            (select true from waitline.job as j where j.tenant = t.name and j.home is not null and j.state = 0 limit 1),
            each, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint[],
            null::text, null::boolean, null::text, null::bigint, null::bigint, null::smallint, null::bigint
        from unnest(found) with ordinality as u (name, place)
        join waitline.tenant as t on t.name = u.name
        order by u.place;
    return query
        select
            null::bigint, u.name, null::text, null::text, null::text, null::integer, null::integer, null::bigint,
            null::bigint, null::text, null::bigint, null::boolean, null::integer,
            j.id, j.arrival, j.promised, j.head_start, j.deadline, j.max_wait, j.cost, j.session, j.paid, j.home, j.returns,
            j.holder, j.call, j.place
        from unnest(found) as u (name)
        cross join lateral (
            (
                select
                    f.id, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session, f.paid, f.home,
                    f.returns, f.holder, f.call, f.place
                from waitline.job as f
                where f.tenant = u.name and f.place is not null and f.holder is null
                order by f.place, f.id
                limit each
            )
            union all
            (
                select
                    f.id, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session, f.paid, f.home,
                    f.returns, f.holder, f.call, f.place
                from waitline.job as f
                where f.tenant = u.name and f.place is null and f.returns <= clock
                order by f.arrival - f.head_start, f.id
                limit longest
            )
            union all
            (
                select
                    f.id, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session, f.paid, f.home,
                    f.returns, f.holder, f.call, f.place
                from waitline.job as f
                where f.tenant = u.name and f.holder is not null and f.state = 0
            )
        ) as j;
end
$$;
comment on function waitline.due_lines is 'Locks tenants of which something is due about now (of those `names`, if given): a row for each, with the time now that the locks are held and `most`, how many jobs of a line were loaded at most; then the first jobs of their lines, those whose backoff is over, and all continuations. `next_return` is when the next backoff of a tenant ends, `homes` whether callers wait that run their own work.';

create function waitline.settle_plain(
    ids bigint[], numbers integer[], states smallint[], results text[], kinds text[], owners text[], metered text[],
    payloads text[]
) returns bigint[]
    language plpgsql volatile as $$
#variable_conflict use_column
declare
    moment bigint;
    recorded bigint[];
    sooner boolean;
begin
    perform from waitline.tenant where name = any(owners) order by name for update;
    if exists (select from waitline.tenant where name = any(metered) and quota like '%\_tokens"%') then
        return null;
    end if;
    select greatest(waitline.now_ns(), max(as_of)) into moment from waitline.tenant where name = any(owners);
    with ended as (
        update waitline.job as j
        set
            state = u.state, result = u.result, kind = u.kind, finished = moment, worker = null, lease = null,
            stop = false, prompt = case when u.state = 2 then null else j.prompt end
        from unnest(ids, numbers, states, results, kinds) with ordinality as u (id, tries, state, result, kind, place)
        where j.id = u.id and j.tries = u.tries and j.state = 1
        returning u.place, j.tenant
    ), freed as (
        select t.name, count(*)::integer as jobs, t.waiting > 0 as anybody, t.due,
            -- The tenant's last slot, or more than there are since it got fewer: those who wait for one move.
            t.quota like '%"concurrency"%' and t.running >= (t.quota::json ->> 'concurrency')::integer as stirs
        from ended
        join waitline.tenant as t on t.name = ended.tenant
        group by t.name
    ), saved as (
        update waitline.tenant as t
        set
            running = t.running - f.jobs,
            as_of = case when f.stirs then moment else t.as_of end,
            due = case when f.stirs and f.anybody then least(t.due, moment) else t.due end
        from freed as f
        where t.name = f.name
    )
    select
        array(select place from ended),
        (select coalesce(bool_or(stirs and anybody and (due is null or due > moment)), false) from freed)
    into recorded, sooner;
    if sooner then
        perform pg_notify('waitline_due', moment::text);
    end if;
    perform pg_notify('waitline_done', part) from unnest(payloads) as u (part);
    return recorded;
end
$$;
comment on function waitline.settle_plain is 'Ends tries of jobs of no session that used what they cost, and answers which of them (counted from 1) still held their jobs; nothing, and leaves all as it was, if tenants that named a usage (`metered`) have limits that it may change: what the general way decides, in one round trip.';
