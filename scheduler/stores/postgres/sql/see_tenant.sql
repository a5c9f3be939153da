-- A tenant's row and the time, without a lock.
select
    (select waitline.now_ns()) as now,
    name as tenant, quota, origin, zeros::text as zeros, work::text as work, running, waiting, as_of, due, echo,
    (select json_agg(l)::text from waitline.line as l where l.tenant = name) as lines
from waitline.tenant
where name = $1
