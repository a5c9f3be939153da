-- Save jobs that were accepted, and their tenants.
with saved as (
    update waitline.tenant as t
    set work = u.work::numeric(60)[], waiting = u.waiting, due = u.due, echo = u.echo,
        tightest = least(case when t.waiting > 0 then t.tightest end, u.tightest)
    from unnest($1::text[], $2::text[], $3::integer[], $4::bigint[], $5::text[], $35::bigint[])
        as u (name, work, waiting, due, echo, tightest)
    where t.name = u.name
), told as (
    select pg_notify('waitline_due', $6::text) where $6::text is not null
), deferred as (
    select pg_notify('waitline_deferred', '') where true = any($33::boolean[])
), inserted as (
    insert into waitline.job (
        id, tenant, state, place, arrival, promised, head_start, deadline, max_wait, cost, session, key, digest, prompt,
        home, lease, holder, call, gate, ladder, rung, predicted, model, max_tokens, look, deferred, worker, slot, counted
    )
    select u.id, u.tenant, u.deferred::integer, u.place, u.arrival, u.promised, u.head_start, u.deadline, u.max_wait,
        array[u.requests, u.input_tokens, u.output_tokens], u.session, u.key, u.digest, u.prompt, u.home, u.lease,
        u.holder, u.call, u.gate, u.ladder, u.rung, u.predicted, u.model, u.max_tokens, u.look, u.deferred,
        case when u.deferred then '' end, case when u.deferred then u.arrival end, u.counted
    from unnest(
        $7::bigint[], $8::text[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[],
        $15::bigint[], $16::bigint[], $17::bigint[], $18::text[], $19::text[], $20::bytea[], $21::text[],
        $22::text[], $23::bigint[], $24::bigint[], $25::smallint[], $26::text[], $27::text[],
        $28::smallint[], $29::bigint[], $30::text[], $31::integer[], $32::bigint[], $33::boolean[], $34::bigint[]
    ) as u (
        id, tenant, place, arrival, promised, head_start, deadline, max_wait,
        requests, input_tokens, output_tokens, session, key, digest, prompt, home, lease,
        holder, call, gate, ladder, rung, predicted, model, max_tokens, look, deferred, counted
    )
)
select (select count(*) from told) + (select count(*) from deferred)
