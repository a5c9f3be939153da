-- The time, when the next caller of some tenants is due, and when a waiting caller's lease or a deadline ends. A
-- tenant that is due with a job at the head of its line waits for a worker.
with clock as materialized (select waitline.now_ns() as now)
select
    clock.now,
    (
        select min(t.due)
        from waitline.tenant as t
        where t.name = any($1::text[]) and t.due is not null and (
            t.due > clock.now
            or (
                select home is not null
                from waitline.job
                where tenant = t.name and place is not null
                order by place, id
                limit 1
            )
        )
    ) as due,
    least(
        (
            select lease from waitline.job
            where home is not null and state = 0 and lease is not null
            order by lease
            limit 1
        ),
        (
            select lease from waitline.job
            where home is not null and state = 1 and tenant = any($1::text[])
            order by lease
            limit 1
        ),
        (select deadline from waitline.job where state = 0 and deadline is not null order by deadline limit 1)
    ) as lost
from clock
