-- Save what ladders decided about jobs that wait, and their tenants.
with saved as (
    update waitline.tenant as t
    set
        zeros = u.zeros::numeric(60)[], work = u.work::numeric(60)[],
        running = u.running, waiting = u.waiting, as_of = u.as_of, due = u.due
    from unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::bigint[], $7::bigint[])
        as u (name, zeros, work, running, waiting, as_of, due)
    where t.name = u.name
), taken as (
    update waitline.job as j
    set
        gate = u.gate, cost = array[u.requests, u.input_tokens, u.output_tokens], rung = u.rung, predicted = u.predicted,
        model = u.model, max_tokens = u.max_tokens, look = u.look, deferred = u.deferred,
        paid = j.paid and not u.deferred, state = u.deferred::integer, turn = case when u.deferred then null else j.turn end,
        worker = case when u.deferred then '' end,
        lease = case when u.deferred then least($20::bigint, j.deadline) else j.lease end,
        returns = case when u.deferred then null else j.returns end,
        slot = case when u.deferred then $19::bigint else j.slot end
    from unnest(
        $8::bigint[], $9::text[], $10::bigint[], $11::bigint[], $12::bigint[], $13::smallint[], $14::bigint[], $15::text[],
        $16::integer[], $17::bigint[], $18::boolean[]
    ) as u (id, gate, requests, input_tokens, output_tokens, rung, predicted, model, max_tokens, look, deferred)
    where j.id = u.id
), later as (
    -- Who stands outside of its line is looked at when it comes in.
    update waitline.job set look = null where id = any($21::bigint[])
), told as (
    select pg_notify('waitline_due', $22::text) where $22::text is not null
), deferred as (
    select pg_notify('waitline_deferred', '') where true = any($18::boolean[])
)
select (select count(*) from told) + (select count(*) from deferred)
