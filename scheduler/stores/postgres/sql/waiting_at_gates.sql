-- How many jobs wait for each gate, and the time.
select g.name, waitline.now_ns() as now, (select coalesce(sum(waiting), 0) from waitline.line where gate = g.name)::bigint as waiting
from waitline.gate as g
