-- Have a running job stopped by its worker.
update waitline.job set stop = true where id = $1 and tenant = $2 and state = 1 returning state
