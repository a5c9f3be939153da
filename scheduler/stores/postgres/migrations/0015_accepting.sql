-- To accept a plain job takes less: its limits are ready in its tenant's row, and one that comes alone takes three
-- short statements.

drop function waitline.submit_plain(text[], text[], numeric[], numeric[], numeric[], integer[], bigint[], integer[], text[]);

create function waitline.submit_plain(
    names text[], quotas text[], jobs integer[], max_waits bigint[], max_queues integer[], prompts text[]
) returns bigint[]
    language plpgsql volatile as $$
#variable_conflict use_column
declare
    t record;
    clock bigint;
    n integer := 0;
    arrived bigint;
    start bigint;
    refill numeric;
    unit numeric;
    used numeric;
    numbers bigint[];
    owners text[];
    aheads bigint[];
    arrivals bigint[];
    starts bigint[];
    tight bigint;
    tights bigint[];
    sooner boolean := false;
begin
    perform from waitline.tenant where name = any(names) order by name for update;
    clock := waitline.now_ns();
    for t in
        select u.name, u.quota, u.jobs, x.quota as known, shape, as_of, waiting, due, zeros[1] as zero, work[1] as work
        from unnest(names, quotas, jobs) with ordinality as u (name, quota, jobs, place)
        join waitline.tenant as x on x.name = u.name
        order by u.place
    loop
        if t.known <> t.quota or t.shape is null or t.shape[4] is not null then
            return null;
        end if;
        refill := t.shape[1];
        unit := t.shape[2];
        arrived := greatest(clock, t.as_of);
        used := greatest(t.zero, refill * arrived - t.shape[3]) + t.work;
        tight := null;
        for ahead in t.waiting .. t.waiting + t.jobs - 1 loop
            n := n + 1;
            used := used + unit;
            -- The first whole nanosecond at which all before it and the job itself have their permits.
            start := greatest(arrived, div(used + refill - 1, refill));
            if start > arrived and (ahead >= max_queues[n] or start - arrived > max_waits[n]) then
                return null;
            end if;
            tight := least(tight, max_waits[n]);
            owners[n] := t.name;
            aheads[n] := ahead;
            arrivals[n] := arrived;
            starts[n] := start;
        end loop;
        tights := tights || case when tight is not null then least(arrived::numeric + tight, 4611686018427387904)::bigint end;
        sooner := sooner or t.due is null or t.due > arrived;
    end loop;
    if n < cardinality(prompts) then
        return null;
    end if;
    numbers := array(select nextval('waitline.job_number') from generate_series(1, n));
    update waitline.tenant as x
    set
        work = array[work[1] + shape[2] * u.jobs], waiting = waiting + u.jobs, due = least(due, greatest(clock, as_of)),
        tightest = least(case when waiting > 0 then tightest end, u.tight)
    from unnest(names, jobs, tights) as u (name, jobs, tight)
    where x.name = u.name;
    insert into waitline.job (id, tenant, state, place, arrival, promised, max_wait, cost, prompt)
    select u.id, u.tenant, 0, u.arrival, u.arrival, u.start, u.max_wait, array[1, 0, 0], u.prompt
    from unnest(numbers, owners, arrivals, starts, max_waits, prompts)
        as u (id, tenant, arrival, start, max_wait, prompt);
    if sooner then
        perform pg_notify('waitline_due', clock::text);
    end if;
    return numbers || aheads || arrivals || starts;
end
$$;
comment on function waitline.submit_plain(text[], text[], integer[], bigint[], integer[], text[]) is 'Accepts jobs of one request each, of tenants with one bucket and nothing else, or answers null and leaves all as it was: what the general way decides, in one round trip. Numbers, then how many are ahead of each, arrivals and promised starts.';

create function waitline.submit_plain(name text, quota text, max_wait bigint, max_queue integer, prompt text)
returns bigint[]
    language plpgsql volatile as $$
#variable_conflict use_column
declare
    t record;
    arrived bigint;
    start bigint;
    refill numeric;
    used numeric;
    tight bigint;
    number bigint;
begin
    select x.name, quota as known, shape, as_of, waiting, due, zeros[1] as zero, work[1] as work
    into t
    from waitline.tenant as x
    where x.name = $1
    for update;
    if t.known is distinct from $2 or t.shape is null or t.shape[4] is not null then
        return null;
    end if;
    arrived := greatest(waitline.now_ns(), t.as_of);
    refill := t.shape[1];
    used := greatest(t.zero, refill * arrived - t.shape[3]) + t.work + t.shape[2];
    start := greatest(arrived, div(used + refill - 1, refill));
    if start > arrived and (t.waiting >= $4 or start - arrived > $3) then
        return null;
    end if;
    if $3 is not null then
        tight := least(arrived::numeric + $3, 4611686018427387904);
    end if;
    update waitline.tenant as x
    set
        work = array[t.work + t.shape[2]], waiting = t.waiting + 1, due = least(t.due, arrived),
        tightest = least(case when t.waiting > 0 then tightest end, tight)
    where x.name = $1;
    insert into waitline.job (id, tenant, state, place, arrival, promised, max_wait, cost, prompt)
    values (nextval('waitline.job_number'), $1, 0, arrived, arrived, start, $3, array[1, 0, 0], $5)
    returning id into number;
    if t.due is null or t.due > arrived then
        perform pg_notify('waitline_due', arrived::text);
    end if;
    return array[number, t.waiting, arrived, start];
end
$$;
comment on function waitline.submit_plain(text, text, bigint, integer, text) is 'The same for a job that comes alone, in a third less time.';
