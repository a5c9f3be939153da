-- The next job of each of these sessions that stands outside its line behind the one that ended. Scalar subqueries: one
-- that only asks whether there is a row may be planned as a walk over all sessions.
select j.id, u.tenant, u.session, j.cost, j.paid, j.gate
from unnest($1::text[], $2::text[]) as u (tenant, session)
cross join lateral (
    select id, cost, paid, gate
    from waitline.job
    where tenant = u.tenant and session = u.session and state = 0 and place is null and turn is null and returns is null
        and id <> all ($3::bigint[])
    order by arrival - head_start, id
    limit 1
) as j
where (
    select true
    from waitline.job as other
    where other.tenant = u.tenant and other.session = u.session and other.state < 2 and other.id <> all ($3::bigint[])
        and (other.state = 1 or other.place is not null or other.turn is not null or other.returns is not null)
    limit 1
) is null
order by u.tenant, u.session
