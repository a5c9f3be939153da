-- Callers that want no more of it, wherever they stand.
select id, tenant, state, arrival, cost, session, paid, coalesce(place, turn) as place, returns, deadline, home, holder, gate,
    slot, period, deferred, counted
from waitline.job
where id = any($1::bigint[]) and state < 2 and home is not null
for update
