-- What is known of tenants at gates, to be changed.
select l.tenant, l.gate, l.surplus, l.output
from unnest($1::text[], $2::text[]) as u (tenant, gate)
join waitline.learned as l on l.tenant = u.tenant and l.gate = u.gate
order by l.tenant desc, l.gate desc
for update of l
