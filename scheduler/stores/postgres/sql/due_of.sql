-- Lock those of some tenants of which something is due, oldest first; not those that another one is busy with.
select name, quota, origin, zeros::text as zeros, work::text as work, running, waiting, as_of, due, echo
from waitline.tenant
where name = any($3::text[]) and due <= $1
order by due
limit $2
for update skip locked
