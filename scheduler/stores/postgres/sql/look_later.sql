-- When to look at forgotten tenants again; not at all if their quotas were set, since those stay.
update waitline.tenant as t
set forgotten = case when t.origin < 2 then u.later end
from unnest($1::text[], $2::bigint[]) as u (name, later)
where t.name = u.name
