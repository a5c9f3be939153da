-- Running calls that are charged for more output than was estimated.
update waitline.job as j
set reserved = coalesce(j.reserved, j.cost[3]), cost[3] = u.output
from unnest($1::bigint[], $2::bigint[]) as u (id, output)
where j.id = u.id
