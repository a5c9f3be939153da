-- The time, and when something will be due by itself: a grant, the end of a lease, a deadline.
select
    waitline.now_ns() as now,
    (select min(due) from waitline.tenant where due is not null) as due,
    least(
        (select min(lease) from waitline.job where state = 1),
        (select min(lease) from waitline.job where state = 0 and home is not null)
    ) as lease,
    (select min(deadline) from waitline.job where state = 0 and deadline is not null) as deadline
