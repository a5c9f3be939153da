-- The time, and when something will be due by itself: a grant, the end of a lease, a deadline. The first of an index
-- each: a minimum may be planned as a walk over all of them.
select
    waitline.now_ns() as now,
    least(
        (select due from waitline.tenant where due is not null order by due limit 1),
        (select due from waitline.line where due is not null order by due limit 1),
        (select min(due) from waitline.gate)
    ) as due,
    least(
        (select lease from waitline.job where state = 1 and lease is not null order by lease limit 1),
        (
            select lease from waitline.job
            where state = 0 and home is not null and lease is not null
            order by lease
            limit 1
        )
    ) as lease,
    least(
        (select deadline from waitline.job where state = 0 and deadline is not null order by deadline limit 1),
        (select look from waitline.job where state = 0 and look is not null order by look limit 1)
    ) as deadline
