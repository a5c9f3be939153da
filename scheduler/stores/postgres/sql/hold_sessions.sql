-- Renew the leases of turns that are still held.
update waitline.session as s
set lease = waitline.now_ns() + $3
from unnest($1::text[], $2::text[]) as u (id, holder)
where s.id = u.id and s.holder = u.holder
