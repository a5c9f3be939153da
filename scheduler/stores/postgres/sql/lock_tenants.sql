-- Lock tenants, in the one order in which everybody does.
select name as tenant, quota, origin, zeros::text as zeros, work::text as work, running, waiting, as_of, due, echo
from waitline.tenant
where name = any($1::text[])
order by name
for update
