-- Renew the leases of callers that wait or run; the ids of those that could be.
update waitline.job
set lease = waitline.now_ns() + $2
where id = any($1::bigint[]) and home = $3 and state < 2
returning id, state
