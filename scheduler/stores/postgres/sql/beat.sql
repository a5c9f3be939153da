-- Renew leases; of those that are held, whether somebody wants them stopped. Waits for nobody, who might wait for one of
-- these: a row that another transaction has is about to end, or its lease is renewed the next time.
with free as (
    select j.id
    from unnest($1::bigint[], $2::integer[]) as u (id, tries)
    join waitline.job as j on j.id = u.id and j.tries = u.tries
    where j.state = 1
    for no key update of j skip locked
), renewed as (
    update waitline.job as j set lease = waitline.now_ns() + $3 from free where j.id = free.id
)
select j.id, j.stop
from unnest($1::bigint[], $2::integer[]) as u (id, tries)
join waitline.job as j on j.id = u.id and j.tries = u.tries
where j.state = 1
