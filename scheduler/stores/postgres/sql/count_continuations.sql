-- How many continuations stand in the lines of these tenants.
select tenant, count(*) as number
from waitline.job
where tenant = any($1::text[]) and holder is not null and state = 0
group by tenant
