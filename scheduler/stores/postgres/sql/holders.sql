-- Those of these tries of a tenant's jobs that still run, with the place in line that they had.
select j.id, j.arrival - j.head_start as place
from unnest($1::bigint[], $2::integer[], $3::text[]) as u (id, tries, tenant)
join waitline.job as j on j.id = u.id and j.tries = u.tries and j.tenant = u.tenant
where j.state = 1 and j.holder is null
