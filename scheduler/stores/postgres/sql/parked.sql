-- Jobs of some tenants that stand outside of their lines behind others of their sessions.
select id, tenant, cost, paid, gate, place, session, home
from waitline.job
where tenant = any($1::text[]) and session is not null and state = 0 and place is null and turn is null and returns is null
order by tenant, id
