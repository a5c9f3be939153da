-- Waiting jobs by number.
select id, tenant, cost, session, paid, place, returns, deadline, home, lease
from waitline.job
where id = any($1::bigint[]) and state = 0
for update
