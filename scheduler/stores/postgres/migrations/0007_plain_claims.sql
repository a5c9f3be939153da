-- Claims of plain jobs, in one round trip.

create function waitline.shape_of(quota text) returns bigint[]
    language sql immutable strict as $$
    with limits as (
        select
            l.requests, l.slots, split_part(l.requests ->> 0, '/', 1)::numeric as permits,
            coalesce(nullif(split_part(l.requests ->> 0, '/', 2), ''), '1')::numeric as permits_over,
            split_part(l.requests ->> 1, '/', 1)::numeric as per,
            coalesce(nullif(split_part(l.requests ->> 1, '/', 2), ''), '1')::numeric as per_over
        from (select q -> 'requests' as requests, (q ->> 'concurrency')::bigint as slots from (select quota::jsonb as q) as read) as l
    ), rate as (
        -- Permits per nanosecond, reduced.
        select *, permits * per_over as refill, permits_over * per * 1000000000 as unit,
            gcd(permits * per_over, permits_over * per * 1000000000) as common
        from limits
    )
    select array[
        div(refill, common)::bigint, div(unit, common)::bigint,
        (div(unit, common) * coalesce((requests ->> 2)::numeric, 1))::bigint, slots
    ]
    from rate
    where requests is not null and quota not like '%\_tokens"%'
$$;
comment on function waitline.shape_of is 'Of limits that are one bucket, of requests: units per nanosecond, in a permit, and when full; then slots, null without a bound. Null for all other limits.';

alter table waitline.tenant add column shape bigint[] generated always as (waitline.shape_of(quota)) stored;
comment on column waitline.tenant.shape is 'Its limits made ready for arithmetic, if that is simple.';

create function waitline.claim_plain(
    about bigint, tenants integer, slots integer, longest integer, claimer text, length bigint
) returns table (
    now bigint, more boolean, following bigint, looked integer, id bigint, tenant text, prompt text, session text,
    cost bigint[], attempt integer, tries integer, arrival bigint, promised bigint, slot bigint, deadline bigint
)
    language plpgsql volatile as $$
#variable_conflict use_column
declare
    names text[];
    latest bigint;
    clock bigint;
    each integer;
    t record;
    -- Of the tenant that is looked at: its bucket, its slots to be had, and when its first job begins to count.
    refill numeric;
    unit numeric;
    capacity numeric;
    zero numeric;
    free bigint;
    since bigint;
    -- Of the job that is looked at: since when it counts, its slot, and when its permit is there, exactly.
    begins bigint;
    start bigint;
    exact numeric;
    n integer := 0;
    jobs bigint[];
    starts bigint[];
    arrivals bigint[];
    owners integer[];
    before numeric[];
    waits bigint[];
    -- Of the tenants that change: how many of their jobs go, and how their rows stand after that.
    m integer := 0;
    taken integer;
    again bigint;
    changed text[];
    takens integer[];
    levels numeric[];
    units numeric[];
    lasts bigint[];
    dues bigint[];
    was bigint[];
    ranks integer[];
    longer text[];
    decided boolean := true;
begin
    -- Oldest first, and nobody that another one is busy with.
    select array_agg(t.name), max(t.as_of)
    into names, latest
    from (
        select name, as_of from waitline.tenant where due <= about order by due limit tenants for update skip locked
    ) as t;
    if names is null then
        return;
    end if;
    -- Statements of their own from here on, so that they see what was committed while the locks were waited for.
    clock := greatest(waitline.now_ns(), latest);
    each := least(longest, (slots + cardinality(names) - 1) / cardinality(names) + 1);
    for t in
        select
            x.name, x.shape, x.zeros[1] as zero, x.running, x.waiting, x.as_of, x.due, line.*
        from unnest(names) with ordinality as u (name, place)
        join waitline.tenant as x on x.name = u.name and x.due <= clock
        cross join lateral (
            select
                count(*)::integer as loaded, array_agg(f.id) as ids, array_agg(f.arrival) as arrivals,
                bool_and(
                    f.returns is null and not f.paid and f.home is null and f.holder is null and f.head_start = 0
                    and f.cost[1] = 1 and f.arrival <= clock and (f.deadline is null or f.deadline > clock)
                ) as plain
            from (
                select * from waitline.job as j where j.tenant = u.name and j.place is not null order by j.place, j.id limit each
            ) as f
        ) as line
        order by u.place
    loop
        if t.shape is null or not t.plain then
            decided := false;
            exit;
        end if;
        if t.loaded < t.waiting then
            longer := longer || t.name;
        end if;
        refill := t.shape[1];
        unit := t.shape[2];
        capacity := t.shape[3];
        zero := t.zero;
        free := t.shape[4] - t.running;
        -- No longer ago than the catch-up cap: what came while no worker asked must not all start at once.
        since := greatest(t.as_of, clock - greatest(50000000, div(unit + refill - 1, refill)::bigint));
        taken := 0;
        again := null;
        loop
            if taken = t.loaded then
                again := case when t.loaded = each and t.loaded < t.waiting then clock end;
                exit;
            end if;
            exit when taken >= free;
            begins := greatest(t.arrivals[taken + 1], since);
            exact := zero + unit;
            start := greatest(begins, div(exact + refill - 1, refill));
            if start > clock then
                again := start;
                exit;
            end if;
            taken := taken + 1;
            n := n + 1;
            jobs[n] := t.ids[taken];
            starts[n] := start;
            arrivals[n] := t.arrivals[taken];
            owners[n] := m + 1;
            before[n] := zero;
            if start > begins then
                waits := waits || start;
            end if;
            -- One that became ready within this nanosecond is charged at its exact slot.
            if exact <= refill * (start - 1) then
                exact := refill * start;
            end if;
            zero := greatest(zero, exact - capacity) + unit;
        end loop;
        if taken > 0 or again is distinct from t.due then
            m := m + 1;
            changed[m] := t.name;
            takens[m] := taken;
            levels[m] := zero;
            units[m] := unit;
            lasts[m] := case when taken > 0 then starts[n] end;
            dues[m] := again;
            was[m] := t.due;
        end if;
    end loop;
    if decided and longer is not null then
        -- Who belongs to a line and was not loaded, behind the others or outside.
        decided := (
            select true
            from unnest(longer) as u (name)
            where
                (select true from waitline.job where tenant = u.name and place is null and returns is not null limit 1)
                or (select true from waitline.job where tenant = u.name and home is not null and state = 0 limit 1)
                or (select true from waitline.job where tenant = u.name and holder is not null and state = 0 limit 1)
            limit 1
        ) is null;
    end if;
    if n > slots then
        -- Those whose slots are first go; of one slot, those who came first. But who waited for a permit until that
        -- very nanosecond goes by the fair order between tenants, which is for the general way to say.
        ranks := array(
            select u.place
            from unnest(starts, arrivals, jobs) with ordinality as u (start, arrival, id, place)
            order by u.start, u.arrival, u.id
        );
        start := starts[ranks[slots]];
        decided := decided and (start < starts[ranks[slots + 1]] or start = any(waits) is not true);
        for place in reverse n .. slots + 1 loop
            taken := ranks[place];
            jobs[taken] := null;
            m := owners[taken];
            takens[m] := takens[m] - 1;
            levels[m] := before[taken];
            lasts[m] := case when takens[m] > 0 then starts[taken - 1] end;
            dues[m] := case when takens[m] > 0 then clock else was[m] end;
        end loop;
    end if;
    if decided then
        return query
            with saved as (
                update waitline.tenant as x
                set
                    zeros = array[u.zero], work = array[x.work[1] - u.unit * u.taken], running = x.running + u.taken,
                    waiting = x.waiting - u.taken, as_of = greatest(x.as_of, u.last), due = u.due
                from unnest(changed, levels, units, takens, lasts, dues) as u (name, zero, unit, taken, last, due)
                where x.name = u.name
            )
            update waitline.job as j
            set
                state = 1, place = null, slot = u.slot, attempt = j.attempt + 1, tries = j.tries + 1, worker = claimer,
                lease = clock + length
            from unnest(jobs, starts) as u (id, slot)
            where j.id = u.id
            returning
                null::bigint, null::boolean, null::bigint, null::integer, j.id, j.tenant, j.prompt, j.session, j.cost, j.attempt, j.tries,
                j.arrival, j.promised, j.slot, j.deadline;
    end if;
    now := clock;
    more := case when decided then coalesce(clock >= any(dues), false) end;
    following := (select due from waitline.tenant where due is not null order by due limit 1);
    looked := cardinality(names);
    return next;
end
$$;
comment on function waitline.claim_plain is 'Grants plain jobs of tenants of which something is due, as the general rules would: a row for each, in no order; then one without a number, with the time, whether more of these tenants is due already, when something is due next, and of how many tenants something was due. Its `more` is null, and all is as it was, if that is for the general way to decide. No rows if nothing was due.';
