"""Passage: what a claim decides at shared gates, and how the rows stand after it. See `stage`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scheduler.core.entry import RUNNING
from scheduler.core.ledger import NEVER, PATIENCE
from scheduler.core.line import Line
from scheduler.core.overload import is_overtaken
from scheduler.core.policy import Overload
from scheduler.core.reach import Reach
from scheduler.core.register import ARRIVE, RETURN
from scheduler.core.shared import SharedGate
from scheduler.core.stage import Name, Stage
from scheduler.core.stored import LineState, StoredJob, TenantState
from scheduler.core.tenant import Tenant


def is_crowded(gate: SharedGate, slots: int, now: int) -> bool:
    """Whether those who need no worker pass those who have waited for one for a while."""
    return slots <= 0 and gate.stuck is not None and gate.stuck + PATIENCE <= now


def claim(  # noqa: PLR0917 - all that was loaded
    gates: Mapping[str, SharedGate],
    states: Mapping[str, TenantState],
    jobs: Sequence[StoredJob],
    slots: int,
    now: int,
    reaches: Mapping[Name, Reach],
    overload: Overload | None,
) -> list[StoredJob]:
    """Grant what can pass by `now`, at most `slots` jobs; what moved, in order: granted, expired or refused.

    `jobs`: the first ones of each line of the tenants in `states`, those whose backoff is over, and all
    continuations; of lines that are late also the first ones by the order that is declared for that.
    `reaches`: how far lines were loaded that go on. Callers that run elsewhere take none of the slots. The
    gates know their `limit`.
    """
    begin = max(gate.processed for gate in gates.values())
    for gate in gates.values():
        gate.crowded = is_crowded(gate, slots, now)
        gate.here(states.values())
    kept = {gate.name: (list(gate.backlog), gate.lines, gate.crowd) for gate in gates.values()}
    tenants = {name: state.tenant() for name, state in states.items()}
    stage = Stage(begin, gates, tenants, slots, reaches, overload)
    stage.run([(max(job.since, states[job.tenant].as_of), job) for job in jobs], max(now, begin))
    stopped = stage.events.stopped
    end = max(now, begin) if stopped is None else stopped
    moved = [job for job in stage.moved if isinstance(job, StoredJob)]
    for gate in gates.values():
        gate.backlog, gate.lines, gate.crowd = kept[gate.name]
        gate.processed = end
    for job in moved:
        _leave(gates[job.gate], states[job.tenant], job)
    for state in states.values():
        _save_tenant(state, tenants[state.name], stage, end)
    for time, kind, _, job in stage.events:
        if kind in (ARRIVE, RETURN):
            states[job.tenant].line(job.gate).due_by(time)
    for gate in gates.values():
        _when(gate, end)
    return moved


def _leave(gate: SharedGate, state: TenantState, job: StoredJob) -> None:
    state.waiting -= 1
    if not job.paid:
        state.add_work(job.cost, -1)
    gate.count(job.cost, -1)
    gate.leave(state)
    if job.state is not RUNNING:
        gate.give_up(job.sequence, job.since)


def _save_tenant(state: TenantState, tenant: Tenant, stage: Stage, end: int) -> None:
    """Where a tenant stands now, with its lines."""
    state.zeros, state.running = tenant.zeros, tenant.running
    for line in state.lines.values():
        name = state.name, line.gate
        _save(line, stage.shared[line.gate], tenant, end, name not in stage.reaches)
        here = tenant.lines.get(line.gate)
        overtaken = here is not None and is_overtaken(here, end, stage.overload)
        line.late = end if overtaken else stage.late.get(name) or line.late
        if line.waiting and name in stage.unknown:
            line.due = end
        if line.waiting and name in stage.skipped:
            line.due = max(line.due or 0, end + PATIENCE)


def _save(line: LineState, gate: SharedGate, tenant: Tenant, end: int, whole: bool) -> None:
    """Where the tenant's line stands now, and its tag."""
    finish = gate.fair.finish.get(tenant.name)
    if finish is not None:
        line.finish, line.period = finish, gate.fair.period
    line.entered = gate.fair.entered.get(tenant.name)
    line.due = line.start = line.front = None
    here = tenant.lines.get(gate.name)
    head = None if here is None else here.head(True)
    if head is not None:
        line.front = head.key
    if here is None or here.front is None or here.placed is None:
        if line.waiting and not whole and (here is None or here.empty):
            line.due = end
    elif here.agenda in (gate.eligible, gate.calling, gate.holding):
        line.start, line.front = here.placed[:2]
        line.calls = here.agenda is not gate.eligible
    else:
        line.due = min(NEVER, here.placed[0])
        if here.front.holder is None:
            line.front = here.front.key
    if here is not None and here.onset is not None and here.onset.placed is not None and line.waiting:
        line.due_by(here.onset.placed[0])


def _when(gate: SharedGate, end: int) -> None:
    """When somebody can pass at the earliest, and when one can who needs no worker."""
    gate.due = gate.calls = None
    gate.crowded = False
    if gate.eligible.first() is None and gate.limit is None:
        gate.stuck = None
    turn = gate.turn(gate.free > 0)
    if turn is None or turn[2].front is None:
        if gate.limit is not None and gate.free > 0:
            gate.due = gate.calls = end  # all who were loaded are gone
        return
    gate.due = _ready(gate, turn[2], end)
    calls = [head for head in (gate.holding.first(), gate.calling.first() if gate.free > 0 else None) if head]
    if not calls:
        return
    first = min(calls)
    gate.calls = _ready(gate, first[2], end)
    if first is not turn:
        since = gate.due if gate.stuck is None else gate.stuck
        gate.calls = max(gate.calls, since + PATIENCE)


def _ready(gate: SharedGate, line: Line, end: int) -> int:
    if line.front is None:
        return end
    return min(NEVER, max(end, gate.paused_until, gate.ready(gate.shape.amounts(line.front.cost))))
