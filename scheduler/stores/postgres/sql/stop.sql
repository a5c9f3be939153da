-- Have a running job stopped by its worker, or, of one that is deferred and that nobody has yet, by whoever rescues.
update waitline.job
set stop = true, lease = case when worker = '' then waitline.now_ns() else lease end
where id = $1 and tenant = $2 and state = 1
returning state, worker, lease
