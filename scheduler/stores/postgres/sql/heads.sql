-- Who stands at gates: how many, the turns of the first $3, and how many lines something is due of at $2.
select
    u.name,
    (
        select count(*) from (select from waitline.line where gate = u.name and start is not null limit 10000) as l
    ) as stood,
    (select count(*) from (select from waitline.line where gate = u.name and due <= $2 limit 1000) as l) as coming,
    array(
        select start::text from waitline.line where gate = u.name and start is not null order by start, front limit $3
    ) as starts,
    array(
        select front::text from waitline.line where gate = u.name and start is not null order by start, front limit $3
    ) as fronts
from unnest($1::text[]) as u (name)
