-- A job that failed or was cancelled, with its prompt still there.
select id, tenant, cost, session, head_start, arrival, gate, reserved
from waitline.job
where id = $1 and state in (3, 4) and prompt is not null
for update
