-- Deferred jobs of workers that stop or died: for others to take.
update waitline.job
set worker = '', lease = least($2::bigint, deadline), attempt = greatest(0, attempt - $3::integer)
where id = any($1::bigint[]) and deferred and state = 1
