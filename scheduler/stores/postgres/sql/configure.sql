-- Let a configuration count from the commit on.
with named as (
    insert into waitline.configured (tenant, quota)
    select u.tenant, u.quota from unnest($4::text[], $5::text[]) as u (tenant, quota)
)
update waitline.configuration set version = $1, quota = $2, digest = $3
