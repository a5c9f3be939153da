-- Deferred jobs of dead workers: for others to take.
update waitline.job set worker = '', lease = $2 where id = any($1::bigint[]) and deferred and state = 1
