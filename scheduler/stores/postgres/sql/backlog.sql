-- What those will be charged who stand in line at a gate.
select coalesce(sum(cost[1]), 0)::bigint, coalesce(sum(cost[2]), 0)::bigint, coalesce(sum(cost[3]), 0)::bigint
from waitline.job
where gate = $1 and turn is not null
