-- Deferred jobs whose workers died or stop: for others to take. Tries that were no attempts are not counted.
update waitline.job as j
set worker = '', lease = least($3::bigint, j.deadline), attempt = greatest(0, j.attempt - u.uncounted::integer)
from unnest($1::bigint[], $2::boolean[]) as u (id, uncounted)
where j.id = u.id and j.deferred and j.state = 1
