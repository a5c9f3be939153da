-- What the configuration gives tenants that were never seen; null where it says nothing.
select u.name, coalesce(a.quota, c.quota) as quota
from unnest($1::text[]) as u (name)
cross join waitline.configuration as c
left join waitline.configured as a on a.tenant = u.name
