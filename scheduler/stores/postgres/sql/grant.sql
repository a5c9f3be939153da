-- Save what was decided: tenants, granted jobs with what their handlers need, and jobs that waited in vain.
with saved as (
    update waitline.tenant as t
    set
        zeros = u.zeros::numeric(60)[], work = u.work::numeric(60)[],
        running = u.running, waiting = u.waiting, as_of = u.as_of, due = u.due, late = greatest(t.late, u.late)
    from unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::bigint[], $7::bigint[], $18::bigint[])
        as u (name, zeros, work, running, waiting, as_of, due, late)
    where t.name = u.name
), gone as (
    update waitline.job as j
    set state = 3, place = null, returns = null, lease = null, kind = u.kind, result = u.why, finished = $14
    from unnest($11::bigint[], $12::text[], $13::text[]) as u (id, kind, why)
    where j.id = u.id
), joined as (
    update waitline.job
    set place = arrival - head_start, look = case when ladder is not null then $14::bigint end
    where id = any($16::bigint[])
), granted as (
    update waitline.job as j
    set
        state = 1, place = null, returns = null, slot = u.slot, period = u.period, attempt = j.attempt + 1, tries = j.tries + 1,
        worker = coalesce(j.home, $10), lease = greatest(j.lease, $14 + $15),
        overtaken = u.overtaken or (
            $20 and u.slot > j.promised and j.arrival <= case
                when j.gate is null then (select late from waitline.tenant where name = j.tenant)
                else (select late from waitline.line where tenant = j.tenant and gate = j.gate)
            end is true
        )
    from unnest($8::bigint[], $9::bigint[], $17::bigint[], $19::boolean[]) as u (id, slot, period, overtaken)
    where j.id = u.id
    returning j.id, j.attempt, j.tries, j.prompt, j.ladder, j.rung, j.predicted, j.model, j.max_tokens
)
select * from granted
