-- Hold a session for $3 nanoseconds if nobody else does; how it stands otherwise. The clock is read under the lock.
with found as materialized (
    select id, holder, lease, turns from waitline.session where id = $1 for update
), clock as materialized (
    select waitline.now_ns() as now from found
), taken as (
    update waitline.session as s
    set holder = $2, lease = clock.now + $3, used = clock.now
    from found, clock
    where s.id = found.id and (found.holder is null or found.holder = $2 or found.lease <= clock.now)
    returning s.id
)
select found.turns, found.lease, clock.now, exists (select from taken) as held from found, clock
