-- Jobs that were submitted before under one of these keys.
select j.tenant, j.key, j.digest, j.id, j.arrival, j.promised, j.deadline
from unnest($1::text[], $2::text[]) as u (tenant, key)
join waitline.job as j on j.tenant = u.tenant and j.key = u.key
