-- Renew leases; of those that could be, whether somebody wants them stopped.
update waitline.job as j
set lease = waitline.now_ns() + $3
from unnest($1::bigint[], $2::integer[]) as u (id, tries)
where j.id = u.id and j.tries = u.tries and j.state = 1
returning j.id, j.stop
