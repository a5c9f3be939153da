-- Tenants, their lines, and what came of their jobs. All times are nanoseconds since 1970, of this server's clock.

create function waitline.now_ns() returns bigint
    language sql volatile parallel restricted
    as $$ select (extract(epoch from clock_timestamp()) * 1000000000)::bigint $$;
comment on function waitline.now_ns() is 'The only clock. Tests replace it.';

create sequence waitline.job_number;
comment on sequence waitline.job_number is 'Taken under the lock of the tenant, so that it follows the order of commits in a line.';

create table waitline.tenant (
    name text primary key check (length(name) between 1 and 512),
    quota text not null,
    origin smallint not null default 0 check (origin between 0 and 2),
    zeros numeric(60)[] not null,
    work numeric(60)[] not null,
    running integer not null default 0 check (running >= 0),
    waiting integer not null default 0 check (waiting >= 0),
    as_of bigint not null,
    due bigint,
    echo text,
    check (cardinality(zeros) = cardinality(work))
) with (fillfactor = 60);
comment on column waitline.tenant.quota is 'Its limits, as JSON in one fixed spelling.';
comment on column waitline.tenant.origin is '0: quotas= at first sight, 1: applied configuration, 2: set_quota.';
comment on column waitline.tenant.zeros is 'A bucket each: when it would have been empty, in units of 1/p ns.';
comment on column waitline.tenant.work is 'What the jobs in line will be charged, per bucket in its units.';
comment on column waitline.tenant.waiting is 'Jobs in line, and those outside of it for a while.';
comment on column waitline.tenant.as_of is 'Nothing is granted before it.';
comment on column waitline.tenant.due is 'When something can be granted at the earliest; null if that takes a change.';
create index tenant_due on waitline.tenant (due) where due is not null;

create table waitline.job (
    id bigint primary key,
    tenant text not null references waitline.tenant,
    state smallint not null check (state between 0 and 4),
    place bigint,
    arrival bigint not null,
    promised bigint not null,
    slot bigint,
    returns bigint,
    head_start bigint not null default 0 check (head_start >= 0),
    deadline bigint,
    max_wait bigint,
    cost bigint[] not null check (cardinality(cost) = 3),
    session text,
    paid boolean not null default false,
    stop boolean not null default false,
    attempt integer not null default 0 check (attempt >= 0),
    tries integer not null default 0,
    worker text,
    lease bigint,
    key text,
    digest bytea,
    prompt text,
    result text,
    kind text,
    finished bigint,
    check (place is null or state = 0),
    check (returns is null or state = 0),
    check ((state = 1) = (lease is not null)),
    check ((state = 1) = (worker is not null)),
    check ((state > 1) = (finished is not null)),
    check ((key is null) = (digest is null)),
    check (prompt is not null or state > 1)
) with (fillfactor = 80);
comment on column waitline.job.state is '0 waiting, 1 running, 2 done, 3 failed, 4 cancelled.';
comment on column waitline.job.place is 'Its place in line: arrival less head start. Null outside: granted, in backoff, or behind its session.';
comment on column waitline.job.returns is 'In backoff: when it goes back to its line; in line after it: when it did.';
comment on column waitline.job.attempt is 'Attempts so far; a try that the upstream refused is none.';
comment on column waitline.job.tries is 'Grants so far. It fences the result: only the try that holds the lease may record one.';
comment on column waitline.job.stop is 'Somebody wants a running job to be cancelled.';
comment on column waitline.job.kind is 'Of a failed or cancelled job: why.';

create index job_line on waitline.job (tenant, place, id) where place is not null;
create index job_lease on waitline.job (lease) where state = 1;
create index job_returns on waitline.job (tenant, returns) where returns is not null and place is null;
create index job_deadline on waitline.job (deadline) where state = 0 and deadline is not null;
create index job_session on waitline.job (tenant, session, id) where session is not null and state < 2;
create index job_finished on waitline.job (finished) where finished is not null;
create unique index job_key on waitline.job (tenant, key) where key is not null;

create function waitline.submit_plain(
    names text[], quotas text[], refills numeric[], units numeric[], capacities numeric[], jobs integer[],
    max_waits bigint[], max_queues integer[], prompts text[]
) returns table (id bigint, ahead integer, arrival bigint, promised bigint)
    language plpgsql volatile as $$
#variable_conflict use_column
declare
    t record;
    clock bigint;
    n integer := 0;
    arrived bigint;
    start bigint;
    used numeric;
    numbers bigint[];
    owners text[];
    aheads integer[];
    arrivals bigint[];
    starts bigint[];
    sooner boolean := false;
begin
    perform from waitline.tenant where name = any(names) order by name for update;
    clock := waitline.now_ns();
    for t in
        select u.*, tenant.quota as known, as_of, waiting, due, zeros[1] as zero, work[1] as work
        from unnest(names, quotas, refills, units, capacities, jobs)
            with ordinality as u (name, quota, refill, unit, capacity, jobs, place)
        join waitline.tenant on tenant.name = u.name
        order by u.place
    loop
        if t.known <> t.quota then
            return;
        end if;
        arrived := greatest(clock, t.as_of);
        used := greatest(t.zero, t.refill * arrived - t.capacity) + t.work;
        for ahead in t.waiting .. t.waiting + t.jobs - 1 loop
            n := n + 1;
            used := used + t.unit;
            -- The first whole nanosecond at which all before it and the job itself have their permits.
            start := greatest(arrived, div(used + t.refill - 1, t.refill));
            if start > arrived and (ahead >= max_queues[n] or start - arrived > max_waits[n]) then
                return;
            end if;
            owners[n] := t.name;
            aheads[n] := ahead;
            arrivals[n] := arrived;
            starts[n] := start;
        end loop;
        sooner := sooner or t.due is null or t.due > arrived;
    end loop;
    if n < cardinality(prompts) then
        return;
    end if;
    numbers := array(select nextval('waitline.job_number') from generate_series(1, n));
    update waitline.tenant
    set work = array[work[1] + u.unit * u.jobs], waiting = waiting + u.jobs, due = least(due, greatest(clock, as_of))
    from unnest(names, units, jobs) as u (name, unit, jobs)
    where tenant.name = u.name;
    insert into waitline.job (id, tenant, state, place, arrival, promised, max_wait, cost, prompt)
    select u.id, u.tenant, 0, u.arrival, u.arrival, u.start, u.max_wait, array[1, 0, 0], u.prompt
    from unnest(numbers, owners, arrivals, starts, max_waits, prompts)
        as u (id, tenant, arrival, start, max_wait, prompt);
    if sooner then
        perform pg_notify('waitline_due', clock::text);
    end if;
    return query select * from unnest(numbers, aheads, arrivals, starts);
end
$$;
comment on function waitline.submit_plain is 'Accepts jobs of one request each, of tenants with one bucket and nothing else, or answers nothing and leaves all as it was: what the general way decides, in one round trip.';
