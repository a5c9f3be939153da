-- The next tenants, by name, whose quota or its origin is not what the configuration says.
select t.name
from waitline.tenant as t
left join waitline.configured as a on a.tenant = t.name
cross join waitline.configuration as c
where t.name > $1 and t.origin < 2
    and (t.quota, t.origin) is distinct from (
        coalesce(a.quota, c.quota, t.quota), case when coalesce(a.quota, c.quota) is null then 0 else 1 end
    )
order by t.name
limit $2
