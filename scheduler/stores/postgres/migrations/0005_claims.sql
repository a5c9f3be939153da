-- What a claim decides over, in one round trip.

create function waitline.due_lines(about bigint, names text[], tenants integer, slots integer, longest integer)
returns table (
    now bigint, tenant text, quota text, zeros text, work text, running integer, waiting integer, as_of bigint,
    due bigint, echo text, next_return bigint, homes boolean, most integer,
    id bigint, arrival bigint, promised bigint, head_start bigint, deadline bigint, max_wait bigint, cost bigint[],
    session text, paid boolean, home text, returns bigint
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
            (select min(j.returns) from waitline.job as j where j.tenant = t.name and j.returns > clock),
            exists (select from waitline.job as j where j.tenant = t.name and j.home is not null and j.state = 0),
            each, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint[],
            null::text, null::boolean, null::text, null::bigint
        from unnest(found) with ordinality as u (name, place)
        join waitline.tenant as t on t.name = u.name
        order by u.place;
    return query
        select
            null::bigint, u.name, null::text, null::text, null::text, null::integer, null::integer, null::bigint,
            null::bigint, null::text, null::bigint, null::boolean, null::integer,
            j.id, j.arrival, j.promised, j.head_start, j.deadline, j.max_wait, j.cost, j.session, j.paid, j.home, j.returns
        from unnest(found) as u (name)
        cross join lateral (
            (
                select * from waitline.job as f
                where f.tenant = u.name and f.place is not null
                order by f.place, f.id
                limit each
            )
            union all
            (
                select * from waitline.job as f
                where f.tenant = u.name and f.returns <= clock
                order by f.returns
                limit each
            )
        ) as j;
end
$$;
comment on function waitline.due_lines is 'Locks tenants of which something is due about now (of those `names`, if given): a row for each, with the time now that the locks are held and `most`, how many jobs of a line were loaded at most; then the first jobs of their lines, and those whose backoff is over. `next_return` is when the next backoff of a tenant ends, `homes` whether callers wait that run their own work.';
