-- What became of these jobs, so far.
select id, tenant, state, result, kind, attempt, coalesce((deadline - arrival) / 1e9, 0)::float8 as seconds
from waitline.job where id = any($1::bigint[])
