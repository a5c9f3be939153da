-- Quotas by tenant, those known and those configured, and of the configuration's default (its name is null).
select found.name, found.quota, found.origin, found.seen, c.version
from (
    select t.name, t.quota, t.origin, true as seen
    from waitline.tenant as t
    where $1::text is null or t.name = $1
    union all
    select a.tenant, a.quota, 1, false
    from waitline.configured as a
    where ($1::text is null or a.tenant = $1) and not exists (select from waitline.tenant where name = a.tenant)
    union all
    select null, quota, 1, false
    from waitline.configuration
    where quota is not null
) as found
cross join waitline.configuration as c
order by found.name nulls first
limit $2
