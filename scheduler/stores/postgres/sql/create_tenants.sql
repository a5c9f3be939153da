-- Tenants that were never seen.
insert into waitline.tenant (name, quota, zeros, work, as_of, origin)
select u.name, u.quota, u.zeros::numeric(60)[], u.work::numeric(60)[], u.as_of, u.origin
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::smallint[])
    as u (name, quota, zeros, work, as_of, origin)
order by u.name
on conflict (name) do nothing
