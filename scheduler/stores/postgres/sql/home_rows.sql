-- Callers of a process as the database knows them; what it recorded of itself bears a key.
(select id, tenant from waitline.job
where tenant = any($2::text[]) and home is not null and state = 0 and home = $1 and key is null)
union all
(select id, tenant from waitline.job
where tenant = any($2::text[]) and home is not null and state = 1 and home = $1 and key is null)
