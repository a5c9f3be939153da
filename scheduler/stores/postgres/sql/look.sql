-- How a job stands, and how many of its line go before it.
select
    j.id, j.tenant, j.state,
    (
        select count(*)
        from waitline.job as other
        where other.tenant = j.tenant and other.place is not null and (other.place, coalesce(other.holder, other.id)) < (j.place, j.id)
    ) + (
        select count(*)
        from waitline.job as other
        where other.tenant = j.tenant and other.gate = j.gate and other.turn is not null
            and (other.turn, coalesce(other.holder, other.id)) < (j.turn, j.id)
    ) as position,
    j.arrival, j.promised,
    case when j.state > 0 and j.slot is not null then j.slot else greatest(j.promised, coalesce(j.returns, 0)) end as expected,
    case when j.state > 0 then j.slot end as slot, j.gate, j.cost, j.ladder, j.rung, j.predicted, j.model, j.max_tokens, j.deferred,
    case
        when j.state > 0 then j.overtaken
        when j.gate is null then j.arrival <= (select late from waitline.tenant where name = j.tenant) is true
        else j.arrival <= (select late from waitline.line where tenant = j.tenant and gate = j.gate) is true
    end as overtaken
from waitline.job as j
where j.id = $1 and j.tenant = $2
