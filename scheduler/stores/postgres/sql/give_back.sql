-- Callers that want no more of it, wherever they stand.
select id, tenant, state, cost, session, paid, place, returns, deadline, home, holder
from waitline.job
where id = any($1::bigint[]) and state < 2 and home is not null
for update
