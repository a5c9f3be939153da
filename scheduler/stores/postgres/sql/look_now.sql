-- Have the ladders of those at the fronts of lines at some gates looked at: of all tenants, or of some.
update waitline.job as j
set look = least(j.look, $2)
from (
    select f.id
    from waitline.line as l
    cross join lateral (
        select id, look
        from waitline.job
        where tenant = l.tenant and gate = l.gate and turn is not null and holder is null
        order by turn, id
        limit 1
    ) as f
    where l.gate = any($1::text[]) and l.waiting > 0 and f.look is not null
        and ($3::text[] is null or l.tenant = any($3::text[]))
) as front
where j.id = front.id
