-- How some callers of one process stand.
select id, tenant, state, slot, kind, result, coalesce((deadline - arrival) / 1e9, 0)::float8 as seconds
from waitline.job where id = any($1::bigint[])
