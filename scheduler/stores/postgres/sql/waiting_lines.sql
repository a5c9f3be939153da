-- All jobs in line of some tenants, in order, at whatever gate: for the promise of a job that takes a walk over them.
select
    t.name as tenant, j.id, j.arrival, j.promised, j.head_start, j.deadline, j.max_wait, j.cost, j.session, j.paid,
    j.home, j.holder, j.call, coalesce(j.place, j.turn) as place, j.gate,
    j.ladder, j.rung, j.predicted, j.model, j.max_tokens, j.slot
from unnest($1::text[]) as t (name)
cross join lateral (
    select * from waitline.job where tenant = t.name and place is not null
    union all
    select * from waitline.job where tenant = t.name and turn is not null
) as j
order by t.name, coalesce(j.place, j.turn), coalesce(j.holder, j.id), coalesce(j.call, 0)
