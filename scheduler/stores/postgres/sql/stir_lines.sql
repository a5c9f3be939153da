-- Have the lines at some gates looked at anew: in their order, one after the other.
update waitline.line as l
set due = least(l.due, $2 + s.place)
from (
    select tenant, gate, row_number() over (order by start, front) as place
    from waitline.line
    where gate = any($1::text[]) and waiting > 0
) as s
where l.tenant = s.tenant and l.gate = s.gate
