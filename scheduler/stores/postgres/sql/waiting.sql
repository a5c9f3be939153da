-- Waiting jobs by number.
select id, tenant, cost, session, paid, coalesce(place, turn) as place, returns, deadline, home, lease, gate
from waitline.job
where id = any($1::bigint[]) and state = 0
for update
