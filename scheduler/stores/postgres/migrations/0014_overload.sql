-- Overload: the order that is declared for lines that are late, and who goes by it.

create table waitline.overload (
    the_one boolean primary key default true check (the_one),
    target bigint not null check (target >= 0),
    newest boolean not null
);
comment on table waitline.overload is 'What is declared for lines that are late, in one row; without one, all go as their jobs came.';
comment on column waitline.overload.target is 'A line is late while its oldest job has waited for more nanoseconds than this.';
comment on column waitline.overload.newest is 'Then those go first that came last; if not, those whose deadlines come first.';

alter table waitline.tenant add column late bigint;
comment on column waitline.tenant.late is 'Until when another order held, or may have, for its jobs that pass no gate.';
alter table waitline.line add column late bigint;
comment on column waitline.line.late is 'Until when another order held, or may have.';
alter table waitline.job add column overtaken boolean not null default false;
comment on column waitline.job.overtaken is 'It was granted later than promised, and another order held in its line while it waited.';

create function waitline.declare_overload(target bigint, newest boolean) returns void
    language plpgsql volatile as $$
declare
    clock bigint;
begin
    perform from waitline.gate order by name for update;
    insert into waitline.overload as o (target, newest)
    values (declare_overload.target, declare_overload.newest)
    on conflict (the_one) do update
    set target = excluded.target, newest = excluded.newest
    where (o.target, o.newest) <> (excluded.target, excluded.newest);
    if not found then
        return;
    end if;
    perform from waitline.tenant where waiting > 0 order by name for update;
    clock := waitline.now_ns();
    update waitline.tenant set due = least(due, clock) where waiting > 0;
    -- In their order, one after the other.
    update waitline.line as l
    set due = least(l.due, clock + s.place)
    from (select tenant, gate, row_number() over (order by start, front) as place from waitline.line where waiting > 0) as s
    where l.tenant = s.tenant and l.gate = s.gate;
    perform pg_notify('waitline_due', clock::text);
end
$$;
comment on function waitline.declare_overload is 'Declares an order for lines that are late, for all processes, and has all lines looked at anew if there was another one.';

create index job_urgent on waitline.job (tenant, deadline, place, id)
    where place is not null and deadline is not null and holder is null;
create index job_turn_urgent on waitline.job (tenant, gate, deadline, turn, id)
    where turn is not null and deadline is not null and holder is null;

drop function waitline.due_lines(bigint, text[], integer, integer, integer);

create function waitline.due_lines(about bigint, names text[], tenants integer, slots integer, longest integer)
returns table (
    now bigint, tenant text, quota text, zeros text, work text, running integer, waiting integer, as_of bigint,
    due bigint, echo text, next_return bigint, homes boolean, most integer,
    id bigint, arrival bigint, promised bigint, head_start bigint, deadline bigint, max_wait bigint, cost bigint[],
    session text, paid boolean, home text, returns bigint, holder bigint, call smallint, place bigint, slot bigint, best boolean,
    target bigint, newest boolean, beyond integer
)
    language plpgsql volatile as $$
#variable_conflict use_column
declare
    found text[];
    clock bigint;
    each integer;
    declared record;
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
    select into declared o.target, o.newest from waitline.overload as o;
    -- One more than its share, so that a line that goes on tells when.
    each := least(longest, (slots + cardinality(found) - 1) / cardinality(found) + 1);
    return query
        select
            clock, t.name, t.quota, t.zeros::text, t.work::text, t.running, t.waiting, t.as_of, t.due, t.echo,
            (select min(j.returns) from waitline.job as j where j.tenant = t.name and j.place is null and j.gate is null and j.returns > clock),
            -- Not `exists`, which may be planned as a walk over all callers.
            (select true from waitline.job as j where j.tenant = t.name and j.home is not null and j.state = 0 limit 1),
            each, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint[],
            null::text, null::boolean, null::text, null::bigint, null::bigint, null::smallint, null::bigint, null::bigint, null::boolean,
            declared.target, declared.newest, each + 30
        from unnest(found) with ordinality as u (name, place)
        join waitline.tenant as t on t.name = u.name
        order by u.place;
    return query
        select
            null::bigint, u.name, null::text, null::text, null::text, null::integer, null::integer, null::bigint,
            null::bigint, null::text, null::bigint, null::boolean, null::integer,
            j.id, j.arrival, j.promised, j.head_start, j.deadline, j.max_wait, j.cost, j.session, j.paid, j.home, j.returns,
            j.holder, j.call, j.place, j.slot, false, null::bigint, null::boolean, null::integer
        from unnest(found) as u (name)
        cross join lateral (
            (
                select
                    f.id, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session, f.paid, f.home,
                    f.returns, f.holder, f.call, f.place, f.slot
                from waitline.job as f
                where f.tenant = u.name and f.place is not null and f.holder is null
                order by f.place, f.id
                limit each
            )
            union all
            (
                select
                    f.id, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session, f.paid, f.home,
                    f.returns, f.holder, f.call, f.place, f.slot
                from waitline.job as f
                where f.tenant = u.name and f.place is null and f.gate is null and f.returns <= clock
                order by f.arrival - f.head_start, f.id
                limit longest
            )
            union all
            (
                select
                    f.id, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session, f.paid, f.home,
                    f.returns, f.holder, f.call, f.place, f.slot
                from waitline.job as f
                where f.tenant = u.name and f.holder is not null and f.gate is null and f.state = 0
            )
        ) as j;
    if declared.target is null then
        return;
    end if;
    -- Of lines that are late and go on: those by whom they go then. More than of the others, since the first of them may
    -- have come after somebody's slot.
    return query
        select
            null::bigint, u.name, null::text, null::text, null::text, null::integer, null::integer, null::bigint,
            null::bigint, null::text, null::bigint, null::boolean, null::integer,
            j.id, j.arrival, j.promised, j.head_start, j.deadline, j.max_wait, j.cost, j.session, j.paid, j.home, j.returns,
            j.holder, j.call, j.place, j.slot, true, null::bigint, null::boolean, null::integer
        from unnest(found) as u (name)
        cross join lateral (
            select
                (array_agg(f.place order by f.place, f.id))[each] as place, (array_agg(f.id order by f.place, f.id))[each] as id,
                bool_or(f.arrival < clock - declared.target) as late
            from (
                select * from waitline.job as l
                where l.tenant = u.name and l.place is not null and l.holder is null
                order by l.place, l.id
                limit each
            ) as f
        ) as known
        cross join lateral (
            (
                select
                    f.id, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session, f.paid, f.home,
                    f.returns, f.holder, f.call, f.place, f.slot
                from waitline.job as f
                where
                    known.late and declared.newest and f.tenant = u.name and f.place is not null and f.holder is null
                    and (f.place, f.id) > (known.place, known.id)
                order by f.place desc, f.id desc
                limit each + 30
            )
            union all
            (
                select
                    f.id, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session, f.paid, f.home,
                    f.returns, f.holder, f.call, f.place, f.slot
                from waitline.job as f
                where
                    known.late and not declared.newest and f.tenant = u.name and f.place is not null and f.holder is null
                    and f.deadline is not null and (f.place, f.id) > (known.place, known.id)
                order by f.deadline, f.place, f.id
                limit each + 30
            )
        ) as j;
end
$$;
comment on function waitline.due_lines is 'Locks tenants of which something is due about now (of those `names`, if given): a row for each, with the time now that the locks are held and `most`, how many jobs of a line were loaded at most; then the first jobs of their lines, those whose backoff is over, and all continuations. `next_return` is when the next backoff of a tenant ends, `homes` whether callers wait that run their own work. `target`, `newest`: what is declared for lines that are late; of these the `best` ones follow, at most `beyond` of a line.';

create or replace function waitline.gate_lines(about bigint, slots integer, callers integer, lines integer, longest integer)
returns text
    language plpgsql volatile as $$
declare
    clock bigint;
    latest bigint;
    names text[];
    each integer;
    known text[];
    declared record;
    answer json;
begin
    known := array(select name from waitline.gate order by name for update);
    -- The first of an index: whether there is any that is due may be planned as a walk over all lines.
    if coalesce((select due from waitline.line where due is not null order by due limit 1), about + 1) > about
        and not exists (select from waitline.gate where due <= about)
    then
        return null;
    end if;
    -- Those whose heads can come to stand at a gate; where there are more, all up to the time of the last one.
    select array_agg(l.tenant), case when count(*) >= lines then max(l.due) end
    into names, latest
    from (select tenant, due from waitline.line where due <= about order by due fetch first lines rows with ties) as l;
    -- The first of those who stand there, in fair order.
    names := array(
        select unnest(names)
        union
        -- Later messages of runs, whoever stands before them: those may wait for the very slots that the runs hold.
        select tenant from waitline.job where holder is not null and gate is not null and state = 0
        union
        select l.tenant
        from waitline.gate as g
        cross join lateral (
            (select tenant from waitline.line where gate = g.name and start is not null and not calls order by start, front limit slots + 1)
            union all
            (select tenant from waitline.line where gate = g.name and start is not null and calls order by start, front limit callers + 1)
        ) as l
    );
    perform from waitline.tenant where name = any(names) order by name for update;
    clock := waitline.now_ns();
    select into declared o.target, o.newest from waitline.overload as o;
    each := least(longest, greatest(8, slots / greatest(1, cardinality(names))) + 2);
    select json_build_object(
        'now', clock, 'latest', latest, 'each', each, 'target', declared.target, 'newest', declared.newest, 'beyond', each + 30,
        'gates', (select json_agg(g) from waitline.gate as g where g.name = any(known)),
        'tenants', (
            select json_agg(r)
            from (
                select
                    t.name as tenant, t.quota, t.zeros::text as zeros, t.work::text as work, t.running, t.waiting, t.as_of, t.due,
                    t.echo, (select json_agg(l) from waitline.line as l where l.tenant = t.name) as lines,
                    (
                        select json_object_agg(l.gate, (
                            select min(j.returns)
                            from waitline.job as j
                            where j.tenant = t.name and j.place is null and j.gate = l.gate and j.returns > clock
                        ))
                        from waitline.line as l
                        where l.tenant = t.name and l.waiting > 0
                    ) as returns
                from waitline.tenant as t
                where t.name = any(names)
            ) as r
        ),
        'jobs', (
            select json_agg(j)
            from waitline.line as l
            -- Where the first jobs end, of a line that is late and goes on.
            cross join lateral (
                select
                    (array_agg(f.turn order by f.turn, f.id))[each] as turn, (array_agg(f.id order by f.turn, f.id))[each] as id,
                    bool_or(f.arrival < clock - declared.target) as late
                from (
                    select * from waitline.job as o
                    where
                        declared.target is not null and o.tenant = l.tenant and o.gate = l.gate and o.turn is not null
                        and o.holder is null
                    order by o.turn, o.id
                    limit each
                ) as f
            ) as first_jobs
            cross join lateral (
                (
                    select f.id, f.tenant, f.gate, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session,
                        f.ladder is not null as climbs, f.paid, f.home, f.returns, f.holder, f.call, f.turn as place, f.slot, false as best
                    from waitline.job as f
                    where f.tenant = l.tenant and f.gate = l.gate and f.turn is not null and f.holder is null
                    order by f.turn, f.id
                    limit each
                )
                union all
                (
                    select f.id, f.tenant, f.gate, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session,
                        f.ladder is not null as climbs, f.paid, f.home, f.returns, f.holder, f.call, f.turn, f.slot, false
                    from waitline.job as f
                    where f.tenant = l.tenant and f.gate = l.gate and f.place is null and f.turn is null and f.returns <= clock
                        and f.state = 0
                )
                union all
                (
                    select f.id, f.tenant, f.gate, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session,
                        f.ladder is not null as climbs, f.paid, f.home, f.returns, f.holder, f.call, f.turn, f.slot, false
                    from waitline.job as f
                    where f.tenant = l.tenant and f.gate = l.gate and f.holder is not null and f.state = 0
                )
                union all
                (
                    select f.id, f.tenant, f.gate, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session,
                        f.ladder is not null as climbs, f.paid, f.home, f.returns, f.holder, f.call, f.turn, f.slot, true
                    from waitline.job as f
                    where
                        first_jobs.late and declared.newest and f.tenant = l.tenant and f.gate = l.gate and f.turn is not null
                        and f.holder is null and (f.turn, f.id) > (first_jobs.turn, first_jobs.id)
                    order by f.turn desc, f.id desc
                    limit each + 30
                )
                union all
                (
                    select f.id, f.tenant, f.gate, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session,
                        f.ladder is not null as climbs, f.paid, f.home, f.returns, f.holder, f.call, f.turn, f.slot, true
                    from waitline.job as f
                    where
                        first_jobs.late and not declared.newest and f.tenant = l.tenant and f.gate = l.gate and f.turn is not null
                        and f.holder is null and f.deadline is not null and (f.turn, f.id) > (first_jobs.turn, first_jobs.id)
                    order by f.deadline, f.turn, f.id
                    limit each + 30
                )
            ) as j
            where l.tenant = any(names) and l.waiting > 0
        )
    ) into answer;
    return answer::text;
end
$$;
comment on function waitline.gate_lines is 'Locks all gates, and the tenants whose lines a decision up to about now takes, and tells all of it as JSON: the time now that the locks are held, `latest`, the time beyond which there may be lines that were left out, `each`, how many jobs of a line were loaded at most, and of each tenant when the next backoff at each gate ends. `target`, `newest`: what is declared for lines that are late; of these the `best` jobs are told too, at most `beyond` of a line. Null if nothing is due.';

-- In one statement only where no line is late, and nobody need be refused since it could not end in time.
do $$
declare
    text text := pg_get_functiondef('waitline.claim_plain'::regproc);
    before text := text;
begin
    text := replace(text, E'    decided boolean := true;\n', E'    decided boolean := true;\n    patience bigint := (select target from waitline.overload);\n');
    text := replace(
        text, 'and (f.deadline is null or f.deadline > clock)',
        'and (f.deadline is null or (f.deadline > clock and patience is null)) and (patience is null or f.arrival >= clock - patience)'
    );
    text := replace(
        text, 'worker = claimer,',
        'worker = claimer, overtaken = patience is not null and u.slot > j.promised and j.arrival <= (select late from waitline.tenant where name = j.tenant) is true,'
    );
    if length(text) <> length(before) + 282 then
        raise exception 'waitline.claim_plain is not the function that it was';
    end if;
    execute text;
end
$$;
