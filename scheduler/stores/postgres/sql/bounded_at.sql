-- The next tenants by name with jobs at a gate, of those whose waits are bounded.
select l.tenant
from waitline.line as l
join waitline.tenant as t on t.name = l.tenant
where l.gate = $1 and l.waiting > 0 and t.tightest is not null and l.tenant > $2
order by l.tenant
limit $3
