-- All jobs in line of some tenants, in order: for the promise of a job that takes a walk over them.
select
    t.name as tenant, j.id, j.arrival, j.promised, j.head_start, j.deadline, j.max_wait, j.cost, j.session, j.paid,
    j.home, j.holder, j.call, j.place
from unnest($1::text[]) as t (name)
cross join lateral (
    select *
    from waitline.job
    where tenant = t.name and place is not null
    order by place, coalesce(holder, id), coalesce(call, 0)
) as j
