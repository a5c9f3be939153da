"""The one formula: when would this job start? Promise, quote, refusal and deadline all come from here.

The promise is exact and about the tenant's own buckets alone. The expectation adds what tenants share: a
pause to its end, a gate by the work ahead of the job in fair order, slots by their mean holding time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from operator import attrgetter
from typing import NamedTuple, TypeVar

from scheduler.core.account import SLOT_FLOOR, Account, Projection
from scheduler.core.bucket import Scale
from scheduler.core.entry import WAITING, Entry
from scheduler.core.fairness import fair_cost
from scheduler.core.gate import Gate
from scheduler.core.line import Line
from scheduler.core.policy import Outlook, Reason, Refusal
from scheduler.core.tenant import Echo, Tenant

PAUSE_STEP = 1_000_000
"""Nanoseconds between callers refused by a pause, so that they do not come back together."""

ECHO_LEAST = 16
"""Refused callers that are told apart exactly even where the line is shorter than that."""

NO_ECHOES: dict[str, Echo] = {}

Job = TypeVar("Job", bound=Entry)

_key = attrgetter("key")

STRICT, GATE, PAUSE, SLOT = Reason.STRICT, Reason.GATE, Reason.PAUSE, Reason.SLOT


def since(entry: Entry) -> int:
    """From when on a job's wait counts: its arrival, or when it went back to wait after a try."""
    return max(entry.arrival, entry.slot)


def in_order(tenant: Tenant) -> Iterable[Entry]:
    """A tenant's jobs in line, at whatever gate, in the order in which its permits go to them."""
    lines = list(tenant.lines.values())
    return lines[0] if len(lines) == 1 else merge(*lines, key=_key)


def run_to(tenant: Tenant, key: int, begin: int, now: int) -> Projection:
    """The tenant's buckets run from `begin` on behind all its jobs in line that go before `key`."""
    run, only, lines = Projection(tenant, begin), tenant.shape.only, tenant.lines
    if not lines or not run.zeros:
        return run
    if all(line.is_last(key) for line in lines.values()):
        if only is not None:
            work = sum(line.work[0] for line in lines.values())
            run.zeros[0] = max(run.zeros[0], only.full(begin)) + work
            return run
        if len(lines) == 1 and begin == now:
            (line,) = lines.values()
            tail = _tail(line, now)
            run.zeros, run.time = list(tail.zeros), tail.time
            return run
    for entry in in_order(tenant):
        if entry.key >= key:
            break
        if not entry.paid:
            run.start(tenant.shape.amounts(entry.cost))
    return run


def too_long(tenant: Tenant, gate: Gate, now: int, entries: Iterable[Job]) -> Iterator[tuple[Job, int]]:
    """Who at a gate would now wait longer than allowed, by the tenant's own buckets and a pause; until when.

    `entries`: all its jobs in line, in order. Whoever leaves before the next one is asked for delays nobody.
    """
    run = Projection(tenant, max(now, gate.opens))
    for entry in entries:
        if entry.state is not WAITING:
            continue  # it left with another one of its session
        start = run.time if entry.paid else run.peek(tenant.shape.amounts(entry.cost))
        bound = entry.policy.max_wait_ns
        if entry.shared is gate and bound is not None and start - since(entry) > bound and start > now:
            yield entry, start
            if entry.state is not WAITING:
                continue
        if not entry.paid:
            run.start(tenant.shape.amounts(entry.cost))


def _tail(line: Line, now: int) -> Projection:
    """How the buckets will stand behind the last job: remembered while all goes as foreseen."""
    at_gate = line.placed is None or line.agenda in (line.gate.eligible, line.gate.holding)
    if line.tail is None or at_gate:
        line.tail = Projection(line.tenant, now)
        for entry in line:
            if not entry.paid:
                line.tail.start(line.tenant.shape.amounts(entry.cost))
    return line.tail


class Ahead(NamedTuple):
    """How many jobs there are before one."""

    position: int
    """In its line."""
    everyone: int
    """That wait, of all tenants."""
    session: int
    """Of its session, the running one included, if that is what it waits for."""


def expect(entry: Entry, now: int, own: int, late: int, root: Account, ahead: Ahead) -> Outlook:
    """Add what is shared to `own`, the start that the tenant's own buckets allow.

    `late` is that start if nobody passes the gate before the end of its pause.
    """
    gate, position = entry.shared, ahead.position
    start, binds = (late, PAUSE) if late > own else (own, STRICT)
    if gate.zeros or gate.placed is not None:
        shared = gate_start(entry, now, position)
        if shared > start:
            start, binds = shared, GATE
    if entry.holder is None:
        slot = slot_start(entry, now, start, root, position, ahead.everyone)
        if ahead.session:
            slot = max(slot, now + max(SLOT_FLOOR, gate.hold * ahead.session))
        if slot > start:
            start, binds = slot, SLOT
    return Outlook(position, own, start, binds)


def slot_start(entry: Entry, now: int, start: int, root: Account, position: int, everyone: int) -> int:
    """When a job that needs a slot is expected to have one, by the mean holding time; not before `start`."""
    tenant, gate = entry.owner, entry.shared
    if tenant.free <= 0:
        start = max(start, now + tenant.slot_wait(gate.hold, position))
    if gate.free <= 0:
        start = max(start, now + gate.slot_wait(gate.hold, gate.standing))
    if root.free <= 0:
        start = max(start, now + root.slot_wait(root.hold, everyone))
    return start


def gate_start(entry: Entry, now: int, position: int) -> int:
    """When the gate's buckets get to this job: all the work that waits there, or the tenant's fair share.

    By its share: those whose turn comes before its own go first; and while it gets what is before the job in
    its line, and what it owes, all others get as much for their weights.
    """
    tenant, gate = entry.owner, entry.shared
    in_line = entry.state is WAITING and not entry.outside and entry.gate == gate.name
    member = gate.name in tenant.lines
    alone = gate.lines == member
    rivals = gate.crowd + (0 if member else tenant.shape.share)
    debt = gate.fair.debt(tenant.name)
    before = gate.before(gate.fair.start(tenant.name), entry.key)
    latest = now if gate.placed is None else gate.placed[0]
    begin = max(now, gate.opens)
    for scale, zero, backlog, amount in zip(
        gate.shape.scales, gate.zeros, gate.backlog, gate.shape.amounts(entry.cost), strict=True
    ):
        work = backlog if in_line else backlog + amount
        if not alone:
            rounds = position * amount / tenant.shape.share + debt * scale.p
            work = min(work, amount * (1 + before) + int(rounds * rivals))
        latest = max(latest, scale.ready(max(zero, scale.full(begin)), work))
    return latest


def refuse(
    entry: Entry, now: int, run: Projection, outlook: Outlook, reason: Reason, root: Account
) -> Refusal:
    """Refuse with the time at which this caller would be expected to start, behind those refused before it.

    `run` is the tenant's buckets behind all that goes before the caller.
    """
    tenant, gate = entry.owner, entry.shared
    step = 1
    if outlook.binds is PAUSE:
        step = PAUSE_STEP
    elif outlook.binds is SLOT:
        step = max(PAUSE_STEP, root.hold // root.shape.concurrency)
    elif outlook.binds is GATE:
        step = fair_cost(gate.shape, gate.shape.amounts(entry.cost))
    bound = max(ECHO_LEAST, entry.policy.max_queue)
    least = max(outlook.expected, now + 1)
    amounts = tenant.shape.amounts(entry.cost)
    start = tenant.echo(gate.name, now).queue(run, amounts, least, step, bound, now)
    return Refusal(reason, start - now)


def refuse_plain(entry: Entry, tenant: Tenant, gate: Gate, only: Scale, now: int) -> Refusal:
    """The plain case of `refuse`: one request, nobody in line, only the tenant's one bucket in the way."""
    zero, full, bound = tenant.zeros[0], only.p * now - only.capacity, entry.policy.max_queue
    echo = (tenant.echoes or NO_ECHOES).get(gate.name)
    if echo is None or echo.last <= now:
        echo = tenant.echo(gate.name, now)
    start = echo.queue_one(
        only, zero if zero > full else full, bound if bound > ECHO_LEAST else ECHO_LEAST, now
    )
    return Refusal(STRICT, start - now)
