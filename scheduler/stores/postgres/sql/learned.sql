-- What is known of tenants at gates.
select l.tenant, l.gate, l.surplus, l.output
from unnest($1::text[], $2::text[]) as u (tenant, gate)
join waitline.learned as l on l.tenant = u.tenant and l.gate = u.gate
where l.output is not null
