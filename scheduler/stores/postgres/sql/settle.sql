-- Save how attempts ended, and their tenants.
with saved as (
    update waitline.tenant as t
    set
        zeros = u.zeros::numeric(60)[], work = u.work::numeric(60)[],
        running = u.running, waiting = u.waiting, as_of = u.as_of, due = u.due, echo = u.echo,
        tightest = least(case when t.waiting > 0 then t.tightest end, u.tightest)
    from unnest(
        $1::text[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::bigint[], $7::bigint[], $21::text[], $24::bigint[]
    ) as u (name, zeros, work, running, waiting, as_of, due, echo, tightest)
    where t.name = u.name
), ended as (
    update waitline.job as j
    set
        state = u.state, result = u.result, kind = u.kind, finished = $12, place = null, returns = null, worker = null,
        lease = null, stop = false,
        prompt = case when u.state = 2 then null else j.prompt end
    from unnest($8::bigint[], $9::smallint[], $10::text[], $11::text[]) as u (id, state, result, kind)
    where j.id = u.id
), left_for_good as (
    delete from waitline.job where id = any($22::bigint[])
), again as (
    update waitline.job as j
    set
        state = 0, worker = null, lease = null, stop = false, place = u.place, returns = u.returns, paid = u.paid, slot = $12,
        attempt = u.attempt, look = u.look, deferred = false, memory = null, cost[3] = coalesce(j.reserved, j.cost[3]),
        reserved = null
    from unnest($13::bigint[], $14::bigint[], $15::bigint[], $16::boolean[], $17::integer[], $23::bigint[])
        as u (id, place, returns, paid, attempt, look)
    where j.id = u.id
), unparked as (
    update waitline.job
    set place = arrival - head_start, look = case when ladder is not null then $12::bigint end
    where id = any($20::bigint[])
), due as (
    select pg_notify('waitline_due', $18::text) where $18::text is not null
), done as (
    select pg_notify('waitline_done', part) from unnest($19::text[]) as u (part)
)
select (select count(*) from due) + (select count(*) from done)
