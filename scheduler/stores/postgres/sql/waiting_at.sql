-- The next of those who wait for a gate, in line or outside of it.
select id, tenant
from waitline.job
where gate = $1 and state = 0 and id > $3
order by id
limit $2
