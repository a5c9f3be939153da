-- Forget a tenant that has no jobs any more and was charged nothing since, and whose quota nobody has set.
with gone as (
    delete from waitline.tenant as t
    where t.name = $1 and t.zeros = $2::text::numeric(60)[] and t.origin < 2 and t.running = 0 and t.waiting = 0
        and not exists (select from waitline.job where tenant = t.name)
    returning t.name
), unlearned as (
    delete from waitline.learned where tenant in (select name from gone)
)
select name from gone
