-- Have deferred jobs remember something, those that these tries still hold.
update waitline.job as j
set memory = u.memory
from unnest($1::bigint[], $2::integer[], $3::text[]) as u (id, tries, memory)
where j.id = u.id and j.tries = u.tries and j.state = 1 and j.deferred
returning j.id, j.tries
