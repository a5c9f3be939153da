"""The one formula: when would this job start? Promise, quote, refusal and deadline all come from here.

The promise is exact and about the tenant's own buckets alone. The expectation adds what tenants share: a pause
to its end, a gate by the work ahead of the job in fair order, slots by their mean holding time.
"""

from __future__ import annotations

from scheduler.core.account import Account, Amounts, Projection
from scheduler.core.bucket import Scale
from scheduler.core.entry import Entry
from scheduler.core.fairness import fair_cost
from scheduler.core.gate import Gate
from scheduler.core.line import Line
from scheduler.core.policy import Outlook, Reason, Refusal
from scheduler.core.tenant import Echo, Tenant

PAUSE_STEP = 1_000_000
"""Nanoseconds between callers refused by a pause, so that they do not come back together."""


def settled(account: Account, now: int) -> list[int]:
    """The account's buckets at `now`, with what lies above the burst clipped off."""
    return [max(zero, scale.full(now)) for scale, zero in zip(account.shape.scales, account.zeros, strict=True)]


def line_end(tenant: Tenant, line: Line | None, now: int) -> tuple[list[int], int]:
    """The tenant's buckets behind everything in its line, and the start of the last job there."""
    only = tenant.shape.only
    if only is not None:
        zero, full = tenant.zeros[0], only.p * now - only.capacity
        return [(zero if zero > full else full) + (0 if line is None else line.work[0])], now
    zeros = settled(tenant, now)
    if line is None:
        return zeros, now
    if line.tail is None or line.placed is None or line.agenda in (line.gate.eligible, line.gate.holding):
        line.tail = Projection(tenant, now)
        for entry in line:
            line.tail.start(owed(tenant, entry))
    return list(line.tail.zeros), line.tail.time


def line_part(tenant: Tenant, line: Line, key: int, now: int) -> tuple[list[int], int]:
    """The same behind those that go before `key`: a walk over them."""
    run = Projection(tenant, now)
    for entry in line:
        if entry.key >= key:
            break
        run.start(owed(tenant, entry))
    return [max(zero, scale.full(now)) for scale, zero in zip(run.scales, run.zeros, strict=True)], run.time


def owed(tenant: Tenant, entry: Entry) -> Amounts:
    """What a waiting job will be charged; nothing if a refused try was charged already."""
    amounts = tenant.shape.amounts(entry.cost)
    return tenant.shape.nothing if entry.paid else amounts


def own_start(scales: tuple[Scale, ...], zeros: list[int], amounts: Amounts, time: int) -> int:
    """When buckets in this state afford the amounts, not before `time`."""
    if len(scales) == 1:
        return max(time, -(-(zeros[0] + amounts[0]) // scales[0].p))
    return max(time, max(map(Scale.ready, scales, zeros, amounts), default=0))


def expect(entry: Entry, now: int, start: int, root: Account, position: int, everyone: int) -> Outlook:
    """Add what is shared to the start that the tenant's own buckets allow."""
    tenant, gate = entry.tenant, entry.gate
    own, binds = start, Reason.STRICT
    if gate.paused_until > start:
        start, binds = gate.paused_until, Reason.PAUSE
    if gate.zeros:
        shared = _gate_start(entry, now)
        if shared > start:
            start, binds = shared, Reason.GATE
    if entry.holder is None and not (tenant.has_slot and gate.has_slot and root.has_slot):
        waits = ((tenant, position), (gate, _standing(gate)), (root, everyone))
        slot = max((now + who.slot_wait(ahead) for who, ahead in waits if not who.has_slot), default=0)
        if slot > start:
            start, binds = slot, Reason.SLOT
    return Outlook(position, own, start, binds)


def _standing(gate: Gate) -> int:
    return len(gate.eligible.items) - gate.eligible.stale


def _gate_start(entry: Entry, now: int) -> int:
    """When the gate's buckets get to this job: all the work that waits there, or the tenant's fair share."""
    tenant, gate = entry.tenant, entry.gate
    weight = tenant.shape.quota.weight
    line = tenant.lines.get(gate.name)
    rivals = gate.crowd + (0 if line is not None else weight)
    length = 0 if line is None else line.length
    latest = 0
    amounts = gate.shape.amounts(entry.cost)
    for scale, zero, backlog, amount in zip(
        gate.shape.scales, settled(gate, now), gate.backlog, amounts, strict=True
    ):
        share = int((length + 1) * amount * rivals / weight)
        latest = max(latest, scale.ready(zero, min(backlog + amount, max(amount, share))))
    return latest


def refuse(entry: Entry, now: int, zeros: list[int], outlook: Outlook, reason: Reason, root: Account) -> Refusal:
    """Refuse with the time at which this caller would be expected to start, behind those refused before it."""
    tenant = entry.tenant
    if tenant.echo is None:
        tenant.echo = Echo(len(tenant.zeros))
    bound = max(1, entry.policy.max_queue)
    amounts = tenant.shape.amounts(entry.cost)
    behind = tenant.echo.queue(zeros, amounts, bound)
    own = own_start(tenant.shape.scales, behind, tenant.shape.nothing, outlook.promised)
    if own <= now or outlook.expected > own:
        step = {
            Reason.PAUSE: PAUSE_STEP,
            Reason.SLOT: max(PAUSE_STEP, root.hold // root.shape.concurrency),
        }.get(outlook.binds, fair_cost(entry.gate.shape, entry.gate.shape.amounts(entry.cost)))
        own = tenant.echo.after(max(outlook.expected, now + 1), step, bound)
    return Refusal(reason, own - now)
