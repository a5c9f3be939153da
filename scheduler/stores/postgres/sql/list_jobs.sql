-- The newest jobs, of one tenant and in one state if those are given. No prompts, no results.
select
    id, tenant, state, session, attempt, kind, arrival, promised, slot, returns, finished, worker,
    length(prompt) as prompt_size, length(result) as result_size,
    (select waitline.now_ns()) as now
from waitline.job
where ($1::text is null or tenant = $1) and ($2::smallint is null or state = $2) and ($3::bigint is null or id = $3)
order by id desc
limit $4
