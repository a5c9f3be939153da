-- How many unfinished jobs each of these sessions has.
select u.tenant, u.session, (
    select count(*)
    from waitline.job as j
    where j.tenant = u.tenant and j.session = u.session and j.state < 2
) as jobs
from unnest($1::text[], $2::text[]) as u (tenant, session)
