-- Those of some jobs that are deferred and that no worker has.
select id, tries from waitline.job where id = any($1::bigint[]) and deferred and state = 1 and worker = '' for update
