-- Save quotas that a configuration gives, and where they come from.
update waitline.tenant as t
set quota = u.quota, origin = u.origin
from unnest($1::text[], $2::text[], $3::smallint[]) as u (name, quota, origin)
where t.name = u.name
