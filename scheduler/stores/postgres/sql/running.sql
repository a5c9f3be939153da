-- Those of these tries that still hold their job.
select j.id, j.tenant, u.tries, j.attempt, j.cost, j.session, j.paid, j.arrival, j.head_start, j.lease,
    j.deadline, j.max_wait, j.stop, j.home, j.holder, j.gate, j.slot, j.period,
    j.ladder, j.rung, j.predicted, j.model, j.max_tokens, j.deferred, j.counted, j.reserved
from unnest($1::bigint[], $2::integer[]) as u (id, tries)
join waitline.job as j on j.id = u.id and j.tries = u.tries
where j.state = 1
for update of j
