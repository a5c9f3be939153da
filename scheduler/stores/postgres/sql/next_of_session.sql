-- The next job of each of these sessions that stands outside its line behind the one that ended.
select distinct on (j.tenant, j.session) j.id, j.tenant, j.session, j.cost, j.paid
from unnest($1::text[], $2::text[]) as u (tenant, session)
join waitline.job as j on j.tenant = u.tenant and j.session = u.session
where j.state = 0 and j.place is null and j.returns is null
    and not exists (
        select from waitline.job as other
        where other.tenant = j.tenant and other.session = j.session and other.id <> all ($3::bigint[])
            and (other.state = 1 or other.place is not null or other.returns is not null)
    )
order by j.tenant, j.session, j.arrival - j.head_start, j.id
