-- What the configuration says of these tenants, of those that it may change.
select
    t.name, coalesce(a.quota, c.quota, t.quota) as quota,
    case when coalesce(a.quota, c.quota) is null then 0 else 1 end as origin
from waitline.tenant as t
left join waitline.configured as a on a.tenant = t.name
cross join waitline.configuration as c
where t.name = any($1::text[]) and t.origin < 2
order by t.name
