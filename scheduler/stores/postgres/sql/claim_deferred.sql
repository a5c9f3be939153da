-- Take jobs that are deferred and that nobody has.
with found as (
    select id
    from waitline.job
    where deferred and state = 1 and worker = '' and not stop
    order by id
    limit $2
    for update skip locked
)
update waitline.job as j
set worker = $1, lease = waitline.now_ns() + $3, attempt = j.attempt + 1, tries = j.tries + 1
from found
where j.id = found.id
returning j.id, j.tenant, j.prompt, j.session, j.cost, j.attempt, j.tries, j.arrival, j.promised, j.slot, j.deadline, j.lease,
    j.gate, j.rung, j.predicted, j.model, j.max_tokens, j.memory
