-- Running jobs whose lease is over, and waiting jobs whose deadline is.
(select id, tenant, tries, attempt, true as running from waitline.job
where state = 1 and lease <= $2 order by lease limit $1)
union all
(select id, tenant, tries, attempt, false from waitline.job
where state = 0 and deadline <= $2 order by deadline limit $1)
