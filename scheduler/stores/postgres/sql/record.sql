-- Save what callers used while this database was away, a row for each of them that still runs, and one that says so.
with saved as (
    update waitline.tenant as t
    set zeros = u.zeros::numeric(60)[], running = u.running, as_of = u.as_of
    from unnest($1::text[], $2::text[], $3::integer[], $4::bigint[]) as u (name, zeros, running, as_of)
    where t.name = u.name
)
insert into waitline.job (
    id, tenant, state, arrival, promised, slot, cost, attempt, tries, worker, lease, home, key, digest, finished, kind, gate
)
select u.id, u.tenant, u.state, u.arrival, u.slot, u.slot,
    array[u.requests, u.input_tokens, u.output_tokens], 1, 1,
    case when u.state = 1 then $15::text end, case when u.state = 1 then $16::bigint + $17::bigint end,
    case when u.state = 1 then $15::text end, u.key, ''::bytea,
    case when u.state > 1 then $16::bigint end, case when u.state > 1 then $18::text end, u.gate
from unnest(
    $5::bigint[], $6::text[], $7::text[], $8::smallint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[],
    $13::bigint[], $14::text[]
) as u (id, tenant, key, state, arrival, slot, requests, input_tokens, output_tokens, gate)
