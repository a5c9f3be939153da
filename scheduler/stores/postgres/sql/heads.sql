-- The first jobs of some lines, those whose backoff is over, all continuations, and the time now that the locks are
-- held. A row at least for each line; `next_return` is when its next backoff ends.
with clock as materialized (select waitline.now_ns() as now)
select
    clock.now, t.name as tenant,
    (select min(returns) from waitline.job where tenant = t.name and place is null and returns > clock.now) as next_return,
    exists (select from waitline.job where tenant = t.name and home is not null and state = 0) as homes,
    j.id, j.arrival, j.promised, j.head_start, j.deadline, j.max_wait, j.cost, j.session, j.paid, j.home, j.returns,
    j.holder, j.call, j.place
from clock
cross join unnest($1::text[]) as t (name)
left join lateral (
    (
        select *
        from waitline.job
        where tenant = t.name and place is not null and holder is null
        order by place, id
        limit $2
    )
    union all
    (
        select *
        from waitline.job
        where tenant = t.name and place is null and returns <= clock.now
        order by returns
        limit $2
    )
    union all
    (
        select *
        from waitline.job
        where tenant = t.name and holder is not null and state = 0
    )
) as j on true
