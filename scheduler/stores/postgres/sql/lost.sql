-- Running jobs whose lease is over, waiting jobs whose deadline is, and waiting callers whose process is gone.
(select id, tenant, tries, attempt, home, true as running from waitline.job
where state = 1 and lease <= $2 and ($3 or home is not null) order by lease limit $1)
union all
(select id, tenant, tries, attempt, null, false from waitline.job
where state = 0 and deadline <= $2 order by deadline limit $1)
union all
(select id, tenant, tries, attempt, home, false from waitline.job
where state = 0 and home is not null and lease <= $2 order by lease limit $1)
