-- Who stands at gates: the turns of the first $3, and how many lines something is due of at $2. Heads that need a worker
-- and those that do not are apart in the index.
with due as materialized (
    select gate from waitline.line where due <= $2 order by due limit 1000
)
select
    u.name, (select count(*) from due where gate = u.name) as coming,
    coalesce(array_agg(h.start::text order by h.start, h.front) filter (where h.start is not null), '{}') as starts,
    coalesce(array_agg(h.front::text order by h.start, h.front) filter (where h.start is not null), '{}') as fronts
from unnest($1::text[]) as u (name)
left join lateral (
    select *
    from (
        (select start, front from waitline.line where gate = u.name and not calls and start is not null order by start, front limit $3)
        union all
        (select start, front from waitline.line where gate = u.name and calls and start is not null order by start, front limit $3)
    ) as both_kinds
    order by start, front
    limit $3
) as h on true
group by u.name
