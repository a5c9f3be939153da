-- The time, when a waiting caller's lease or a deadline ends, and those of some tenants of which something will be
-- due, or is for a caller or a continuation: one that is due with a job before all of these waits for a worker. Where an
-- order is declared for lines that are late, that may be so whoever came first. A row at least.
with clock as materialized (select waitline.now_ns() as now),
own as materialized (select due from waitline.line where tenant = any($1::text[]))
select
    clock.now, t.name as tenant, t.due, t.as_of,
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
    ) as lost,
    least(
        (select min(due) from own), (select min(calls) from waitline.gate)
    ) as gates
from clock
-- By their names: what says more plainly that something is due may be planned as a walk over all tenants of which it is.
left join waitline.tenant as t on t.name = any($1::text[]) and case
    when t.due is null then false
    when t.due > clock.now then true
    else
        (
            select home is not null
            from waitline.job
            where tenant = t.name and place is not null
            order by place, coalesce(holder, id)
            limit 1
        )
        or (select true from waitline.job where tenant = t.name and holder is not null and state = 0 limit 1)
        or (select true from waitline.overload)
end
