-- Gates that tenants share, their lines there, and what a decision at a gate takes.

create table waitline.gate (
    name text primary key check (length(name) between 1 and 512),
    given text not null,
    running integer not null default 0 check (running >= 0),
    due bigint,
    calls bigint,
    state text not null
) with (fillfactor = 50);
comment on table waitline.gate is 'Everybody who decides anything at any of them locks all of them first, in the order of their names.';
comment on column waitline.gate.given is 'What the operator said of it, as JSON.';
comment on column waitline.gate.due is 'When somebody who stands there can pass at the earliest; null if that takes a change.';
comment on column waitline.gate.calls is 'When one can who needs no worker.';
comment on column waitline.gate.state is 'Its buckets, its fair order and what it learned of its upstream, as JSON.';

create table waitline.line (
    gate text not null references waitline.gate,
    tenant text not null references waitline.tenant on delete cascade,
    waiting integer not null default 0 check (waiting >= 0),
    due bigint,
    start numeric(60),
    front numeric(60),
    calls boolean not null default false,
    finish numeric(60) not null default 0,
    period bigint not null default 0,
    entered numeric(60),
    primary key (tenant, gate),
    check (start is null or front is not null),
    check (waiting > 0 or (due is null and front is null))
) with (fillfactor = 60);
comment on table waitline.line is 'The lines of tenants at gates, and their places in the fair order.';
comment on column waitline.line.due is 'When its head can come to stand at the gate; null if that takes a change.';
comment on column waitline.line.start is 'While its head stands there: the tag by which it goes.';
comment on column waitline.line.front is 'The key of its head, which decides between equal tags; null if it is yet to be found.';
comment on column waitline.line.calls is 'That head needs no worker.';
comment on column waitline.line.finish is 'The finish tag of the tenant, made in that busy period of the gate.';
comment on column waitline.line.entered is 'The virtual time at which its heads came to stand there, of which one has been there ever since; null if none is.';
create index line_due on waitline.line (due) where due is not null;
create index line_standing on waitline.line (gate, calls, start, front) where start is not null;

alter table waitline.job
    add column gate text,
    add column turn bigint,
    add column period bigint not null default 0,
    add constraint job_turn check (turn is null or (gate is not null and state = 0)),
    add constraint job_place check (place is null or gate is null);
comment on column waitline.job.gate is 'The shared gate that it passes; null if there is none.';
comment on column waitline.job.turn is 'The place in line of a job that passes a gate. Whoever grants where there is none never sees it.';
comment on column waitline.job.period is 'The busy period of its gate in which its grant moved the tenant''s tag; 0 if it did not.';
create index job_turn on waitline.job (tenant, gate, turn, id) where turn is not null;
create index job_gate on waitline.job (gate, id) where gate is not null and state = 0;

create function waitline.take_turn() returns trigger
    language plpgsql as $$
begin
    new.turn := new.place;
    new.place := null;
    return new;
end
$$;
create trigger job_turn before insert or update of place on waitline.job
    for each row when (new.gate is not null)
    execute function waitline.take_turn();
comment on function waitline.take_turn() is 'Who writes a place need not know whether there is a gate.';

do $$
declare
    text text := pg_get_functiondef('waitline.due_lines'::regproc);
    before text := text;
begin
    text := replace(text, 'j.place is null and j.returns > clock', 'j.place is null and j.gate is null and j.returns > clock');
    text := replace(text, 'f.place is null and f.returns <= clock', 'f.place is null and f.gate is null and f.returns <= clock');
    text := replace(text, 'f.holder is not null and f.state = 0', 'f.holder is not null and f.gate is null and f.state = 0');
    if length(text) <> length(before) + 3 * length(' and j.gate is null') then
        raise exception 'waitline.due_lines is not the function that it was';
    end if;
    execute text;
end
$$;

create function waitline.lock_tenants(names text[]) returns table (
    gates text, tenant text, quota text, origin smallint, zeros text, work text, running integer, waiting integer,
    as_of bigint, due bigint, echo text, lines text
)
    language plpgsql volatile as $$
#variable_conflict use_column
declare
    known text[];
    locked text[];
begin
    known := array(select name from waitline.gate order by name for update);
    locked := array(select name from waitline.tenant where name = any(names) order by name for update);
    -- Statements of their own, so that they see what was committed while the locks were waited for; but for gates and
    -- tenants that were made meanwhile, which are not locked.
    return query
        select (select json_agg(g)::text from waitline.gate as g where g.name = any(known)), null::text, null::text, null::smallint, null::text,
            null::text, null::integer, null::integer, null::bigint, null::bigint, null::text, null::text;
    return query
        select
            null::text, t.name, t.quota, t.origin, t.zeros::text, t.work::text, t.running, t.waiting, t.as_of, t.due, t.echo,
            (select json_agg(l)::text from waitline.line as l where l.tenant = t.name)
        from waitline.tenant as t
        where t.name = any(locked)
        order by t.name;
end
$$;
comment on function waitline.lock_tenants is 'Locks gates, then tenants, in the one order in which everybody does: a row for the gates, then one for each tenant.';

create function waitline.gate_lines(about bigint, slots integer, callers integer, lines integer, longest integer)
returns text
    language plpgsql volatile as $$
declare
    clock bigint;
    latest bigint;
    names text[];
    each integer;
    known text[];
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
    each := least(longest, greatest(8, slots / greatest(1, cardinality(names))) + 2);
    select json_build_object(
        'now', clock, 'latest', latest, 'each', each,
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
            cross join lateral (
                (
                    select f.id, f.tenant, f.gate, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session,
                        f.paid, f.home, f.returns, f.holder, f.call, f.turn as place
                    from waitline.job as f
                    where f.tenant = l.tenant and f.gate = l.gate and f.turn is not null and f.holder is null
                    order by f.turn, f.id
                    limit each
                )
                union all
                (
                    select f.id, f.tenant, f.gate, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session,
                        f.paid, f.home, f.returns, f.holder, f.call, f.turn
                    from waitline.job as f
                    where f.tenant = l.tenant and f.gate = l.gate and f.place is null and f.turn is null and f.returns <= clock
                        and f.state = 0
                )
                union all
                (
                    select f.id, f.tenant, f.gate, f.arrival, f.promised, f.head_start, f.deadline, f.max_wait, f.cost, f.session,
                        f.paid, f.home, f.returns, f.holder, f.call, f.turn
                    from waitline.job as f
                    where f.tenant = l.tenant and f.gate = l.gate and f.holder is not null and f.state = 0
                )
            ) as j
            where l.tenant = any(names) and l.waiting > 0
        )
    ) into answer;
    return answer::text;
end
$$;
comment on function waitline.gate_lines is 'Locks all gates, and the tenants whose lines a decision up to about now takes, and tells all of it as JSON: the time now that the locks are held, `latest`, the time beyond which there may be lines that were left out, `each`, how many jobs of a line were loaded at most, and of each tenant when the next backoff at each gate ends. Null if nothing is due.';
