-- Waiting jobs whose ladders are to be looked at.
select id, tenant, look from waitline.job where state = 0 and look is not null and look <= $1 order by look, id limit $2
