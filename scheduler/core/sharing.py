"""Joining a line at a shared gate that is kept elsewhere: what a job can look forward to there.

The same formula as in memory (`outlook`), over the rows of the gate, the tenant and its lines. What happens
after that is in `stage`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scheduler.core.account import Account, Projection
from scheduler.core.gate import Gate
from scheduler.core.ledger import OPEN, line_of
from scheduler.core.outlook import Ahead, expect, refuse, run_to
from scheduler.core.overload import latest_start
from scheduler.core.policy import Outlook, Overload, Reason, Refusal, decide
from scheduler.core.quota import nanoseconds
from scheduler.core.shared import SharedGate
from scheduler.core.stored import LineState, StoredJob, TenantState


def outlook(  # noqa: PLR0917 - rows, as they are loaded
    state: TenantState,
    gate: SharedGate,
    job: StoredJob,
    now: int,
    line: Sequence[StoredJob],
    parked: int = 0,
    continuations: int = 0,
    overload: Overload | None = None,
) -> tuple[Outlook, Refusal | None]:
    """What a job could look forward to if it joined now, and the refusal if its policy does not allow that.

    `line`: the tenant's jobs in line at whatever gate, in order, where `needs_line` says so. `parked`: jobs
    of its session before it. `continuations`: how many of those at this gate are some. `overload`: what is
    declared for lines that are late. The gate must know who stands there.
    """
    tenant, own = state.tenant(), state.lines.get(gate.name)
    job.owner, job.shared, job.gate = tenant, gate, gate.name
    never = tenant.shape.never(job.cost) or gate.shape.never(job.cost)
    if never is not None:
        return Outlook(0, now, now, Reason.NEVER), Refusal(Reason.NEVER, 0, never)
    waiting = 0 if own is None else own.waiting
    if state.waiting:
        tenant.lines[gate.name if waiting else ""] = line_of(state, tenant, gate, line)
    gate.here([state])
    by_key = job.holder is not None or job.head_start > 0
    ahead = sum(other.key < job.key for other in line if other.gate == gate.name) if by_key else waiting
    if gate.closed_until is None and not parked and starts(state, gate, job, now, overload):
        return Outlook(0, now, now, Reason.STRICT), None
    found, run = _look(job, now, Ahead(ahead, state.waiting, parked))
    if gate.closed_until is not None:
        if parked or not _knocks(state, gate, job, now, overload):
            return found, Refusal(Reason.SPEND_LIMIT, gate.wait_of_refused(gate.opens, now))
        return Outlook(0, now, now, Reason.STRICT), None
    due = latest_start(job, overload)
    if found.expected <= now and (due is None or due > now):
        return found, None
    full = job.holder is None and waiting - continuations >= job.policy.max_queue
    reason = decide(found, now, job.policy.max_wait_ns, full, due)
    if reason is None:
        return found, None
    refusal = refuse(job, now, run, found, reason, Account(OPEN, now))
    state.remember(tenant, gate.name)
    return found, refusal


def starts(state: TenantState, gate: SharedGate, job: StoredJob, now: int, overload: Overload | None) -> bool:
    """Whether a job has all it needs and nobody stands before it; jobs at other gates may not have all."""
    tenant = job.owner
    if not tenant.affords(tenant.shape.amounts(job.cost), now):
        return False
    if gate.paused_until > now or not gate.affords(gate.shape.amounts(job.cost), now):
        return False
    if job.holder is None and (tenant.free <= 0 or gate.free <= 0):
        return False
    if gate.coming or (job.expires is not None and job.expires <= now):
        return False
    if overload is not None and _has_before(gate, job):
        return False  # whoever of its line stands there
    if any(_stands_before(line, gate, job, now) for line in state.lines.values()):
        return False
    return not gate.heads or (gate.fair.start(tenant.name), job.key) < gate.heads[0]


def _has_before(gate: SharedGate, job: StoredJob) -> bool:
    """Whether a job that was loaded goes before another one in their line, as long as that is not late."""
    slot = job.owner.free > 0 and gate.free > 0
    line = (other for line in job.owner.lines.values() for other in line if other.gate == gate.name)
    return any(other.key < job.key and (slot or other.holder is not None) for other in line)


def _knocks(
    state: TenantState, gate: SharedGate, job: StoredJob, now: int, overload: Overload | None
) -> bool:
    """Whether a job may probe a gate that is closed."""
    if gate.closed_until is None or now < gate.closed_until or job.holder is not None:
        return False
    paused, gate.paused_until = gate.paused_until, now
    startable = starts(state, gate, job, now, overload)
    gate.paused_until = paused
    return startable


def _stands_before(line: LineState, gate: SharedGate, job: StoredJob, now: int) -> bool:
    """Whether the permits of the tenant, or the gate, are for the head of one of its lines first."""
    if line.front is None:
        return line.due is not None and line.due <= now  # it is yet to be found
    arranged = line.gate == gate.name or (line.start is None and line.due is not None)
    return arranged and line.front < job.key


def _look(job: StoredJob, now: int, ahead: Ahead) -> tuple[Outlook, Projection]:
    """What it can look forward to, and its tenant's buckets behind all before it.

    Slots that those will take who come to the gate now are not there.
    """
    tenant, gate = job.owner, job.shared
    run, amounts = run_to(tenant, job.key, now, now), tenant.shape.amounts(job.cost)
    own = late = run.peek(amounts)
    if gate.closed_until is None and gate.paused_until > now:
        run = run_to(tenant, job.key, gate.paused_until, now)
        late = run.peek(amounts)
    with coming(gate):
        return expect(job, now, own, late, Account(OPEN, now), ahead), run


@contextmanager
def coming(gate: Gate) -> Iterator[None]:
    """Look ahead without the slots that those will take who come to a gate now."""
    taken = gate.coming if isinstance(gate, SharedGate) else 0
    gate.free -= taken
    try:
        yield
    finally:
        gate.free += taken


def join(
    state: TenantState,
    gate: SharedGate,
    job: StoredJob,
    now: int,
    outside: bool,
    overload: Overload | None = None,
) -> None:
    """Let a job that was accepted into its line, or have it stand outside behind one of its session."""
    if gate.closed_until is not None:
        gate.probe_id, gate.paused_until = job.sequence, now
        gate.closed_until = now + nanoseconds("spend_probe", gate.upstream.spend_probe)
    front = state.line(gate.name).front
    first = front is None or job.key < front or job.holder is not None or overload is not None
    gate.join(state, now, first=first and not outside)
    state.waiting += 1
    if not outside:
        state.add_work(job.cost, 1)
        gate.count(job.cost, 1)
