-- Renew the leases of callers that wait or run; the ids of those that are held. Waits for nobody, as `beat`.
with free as (
    select id from waitline.job where id = any($1::bigint[]) and home = $3 and state < 2 for no key update skip locked
), renewed as (
    update waitline.job as j set lease = waitline.now_ns() + $2 from free where j.id = free.id
)
select id, state from waitline.job where id = any($1::bigint[]) and home = $3 and state < 2
