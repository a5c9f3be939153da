"""The engine over a state that is kept elsewhere: load it, let the engine decide, save what changed.

A store keeps a row per tenant and per job. Under its locks it loads the tenants that are due and the first
jobs of their lines, and `grant` runs the engine over them: what happened since is played again in the order
in which it happened, so that a store decides what the engine in memory would have decided, at the same
slots. A tenant's row changes at two other moments, when a job joins (`outlook`, `join`) and when it ends
(`settle`). Nothing in here knows a database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scheduler.core.account import Account, shape_of
from scheduler.core.claims import Claims, in_reach
from scheduler.core.gate import Gate
from scheduler.core.line import Line
from scheduler.core.outlook import Ahead, expect, refuse, run_to
from scheduler.core.overload import is_overtaken, latest_start
from scheduler.core.policy import Outlook, Overload, Reason, Refusal, decide
from scheduler.core.quota import Cost, Quota, Usage
from scheduler.core.reach import Reach
from scheduler.core.schedule import CATCH_UP
from scheduler.core.shared import SharedGate
from scheduler.core.stored import StoredJob, TenantState
from scheduler.core.tenant import Tenant

OPEN = shape_of(Quota())
"""The shape of a gate without limits, and of a scheduler without a bound on its slots."""

NEVER = 1 << 62
"""A time that does not come: only a change helps. It is also the latest time that a store keeps."""

PATIENCE = 2 * CATCH_UP
"""Nanoseconds for which a job is due before continuations pass it: time for one who has a slot to take it."""


# --- submit ---------------------------------------------------------------------------------------------


def outlook(  # noqa: PLR0917 - rows, as they are loaded
    state: TenantState,
    job: StoredJob,
    now: int,
    line: Sequence[StoredJob],
    parked: int = 0,
    continuations: int = 0,
    overload: Overload | None = None,
) -> tuple[Outlook, Refusal | None]:
    """What a job could look forward to if it joined now, and the refusal if its policy does not allow that.

    `line`: the jobs in line, in order, where `needs_line` says so. `parked`: jobs of its session before it.
    `continuations`: how many of those in line are some, where it may be as long as it may get. `overload`:
    what is declared for lines that are late.
    """
    tenant, gate, root = state.tenant(), Gate("", Quota(), now), Account(OPEN, now)
    job.owner, job.shared = tenant, gate
    never = tenant.shape.never(job.cost)
    if never is not None:
        return Outlook(0, now, now, Reason.NEVER), Refusal(Reason.NEVER, 0, never)
    if state.waiting:
        tenant.lines[""] = line_of(state, tenant, gate, line)
    call = job.holder is not None
    if call and _goes_at_once(tenant, job, now):
        return Outlook(0, now, now, Reason.STRICT), None
    run, amounts = run_to(tenant, job.key, now, now), tenant.shape.amounts(job.cost)
    own = run.peek(amounts)
    by_key = call or job.head_start > 0
    before = sum(other.key < job.key for other in line) if by_key else len(line)
    # Where it has its permits now, so have those before it, and only wait until a worker takes them.
    taken = max(0, min(tenant.free, before)) if own <= now else 0
    tenant.free -= taken
    ahead = before if by_key else state.waiting
    found = expect(job, now, own, own, root, Ahead(ahead - taken, state.waiting, parked))
    found = found._replace(position=ahead)
    bounded = call or any(amounts) or before < max(1, job.policy.max_queue)  # even if no worker comes
    if found.expected <= now and bounded and (job.expires is None or job.expires > now):
        return found, None
    full = not call and state.waiting - continuations >= job.policy.max_queue
    reason = decide(found, now, job.policy.max_wait_ns, full, latest_start(job, overload))
    if reason is None:
        return found, None
    refusal = refuse(job, now, run, found, reason, root)
    state.remember(tenant, "")
    return found, refusal


def _goes_at_once(tenant: Tenant, call: StoredJob, now: int) -> bool:
    """Whether a continuation has its permits, and nobody stands before it who does not wait for a slot."""
    line = tenant.lines.get("")
    first = None if line is None else line.head(tenant.free > 0)
    return (first is None or call.key < first.key) and tenant.affords(tenant.shape.amounts(call.cost), now)


def needs_line(state: TenantState, job: StoredJob, coming: int, now: int) -> bool:
    """Whether to judge a job takes the jobs in line: one bucket and the back of the line do not.

    Unless it finds its permits, and those that wait, with so many who come now, may be more than there are
    free slots or than the line may hold: whoever stands outside of the line does not count there.
    """
    shape, most = state.shape, state.waiting + coming
    if not state.waiting:
        return False
    if job.head_start or job.holder is not None or (state.zeros and shape.only is None):
        return True
    if shape.only is not None and shape.only.level(state.zeros[0], now) <= state.work[0]:
        return False
    unbounded = not any(shape.amounts(job.cost)) and most >= job.policy.max_queue
    return unbounded or 0 < shape.concurrency - state.running <= most


def line_of(state: TenantState, tenant: Tenant, gate: Gate, jobs: Sequence[StoredJob]) -> Line:
    """A tenant's jobs in line, at whatever gate: those that were loaded, and the work of all."""
    line = Line(tenant, gate)
    for job in jobs:
        line.push(job)
    line.work, line.size = list(state.work), state.waiting - len(line.continuations or ())
    return line


def join(state: TenantState, job: StoredJob, now: int, outside: bool) -> None:
    """Let a job that was accepted into the line, or have it stand outside behind one of its session."""
    state.waiting += 1
    if not outside:
        enter(state, job.cost, now)


def enter(state: TenantState, cost: Cost, now: int) -> None:
    """Let a job in that belongs to the line already."""
    state.add_work(cost, 1)
    state.due_by(now)


# --- grant ----------------------------------------------------------------------------------------------


def grant(  # noqa: PLR0917 - rows, as they are loaded
    states: Sequence[TenantState],
    jobs: Sequence[StoredJob],
    slots: int,
    now: int,
    whole: frozenset[str],
    overload: Overload | None,
    reaches: Mapping[str, Reach],
) -> list[StoredJob]:
    """Grant what can go at `now`, at most `slots` jobs; what moved, in order: granted, expired or refused.

    Callers that run elsewhere take none of the slots.

    `jobs`: the first ones of each line, as many as were loaded, and all continuations; `whole`: the tenants
    of which that is all. `overload`: the order of lines that are late, by which more of them were loaded;
    `reaches`: how far, of those that go on.
    """
    if not jobs:
        for state in states:
            state.due = None if state.name in whole else now
        return []
    by_name = {state.name: state for state in states}
    overdue = [state.name for state in states if state.due is not None and state.due + PATIENCE <= now]
    crowded = frozenset(overdue if slots <= 0 else ())
    jobs, parted = in_reach(by_name, jobs, whole | crowded | reaches.keys())
    arrivals = _arrivals(by_name, jobs, now)
    engine = Claims(arrivals[0][0], lambda name: by_name[name].quota, {"": Quota()}, max(1, slots))
    engine.max_waiting, engine.crowded = len(jobs), crowded
    engine.overload, engine.reaches = overload, reaches
    tenants = {state.name: state.tenant() for state in states}
    engine.tenants = dict(tenants)  # of its own: it forgets whom it can
    if slots <= 0:
        engine.root.free = 0
    engine.play([(time, job) for time, _, job in arrivals if time <= now])
    engine.advance(now)
    moved = [job for job in engine.moved if isinstance(job, StoredJob)]
    for job in moved:
        _leave(by_name[job.tenant], job)
    changed = {job.tenant for job in moved}
    for name, tenant in tenants.items():
        _save(by_name[name], tenant, now, name in whole, name in changed - crowded, name in crowded)
        line = tenant.lines.get("")
        overtaken = line is not None and is_overtaken(line, now, overload)
        by_name[name].late = now if overtaken else engine.late.get(name)
        if name in parted & changed or name in engine.unknown:
            by_name[name].due = now
    return moved


def _leave(state: TenantState, job: StoredJob) -> None:
    """A job is in its tenant's line no more."""
    state.waiting -= 1
    if not job.paid:
        state.add_work(job.cost, -1)
    if job.slot and job.refusal is None:
        state.as_of = max(state.as_of, job.slot)
    elif job.refusal is not None and job.refusal.reason is not Reason.NEVER:  # when its turn had come
        state.as_of = max(state.as_of, job.since)


def _arrivals(
    states: Mapping[str, TenantState], jobs: Sequence[StoredJob], now: int
) -> list[tuple[int, int, StoredJob]]:
    """When each job begins to count, its key, and the job, in that order.

    That is when it joined its line, but not before the last change of its tenant, and no longer ago than the
    catch-up cap: what came while no worker asked must not all start at once.
    """
    earliest = {}
    for job in sorted(jobs):
        if job.tenant not in earliest:
            state = states[job.tenant]
            cap = max(CATCH_UP, state.shape.interval(state.shape.amounts(job.cost)))
            earliest[job.tenant] = max(state.as_of, now - cap)
    return sorted((max(job.since, earliest[job.tenant]), job.key, job) for job in jobs)


def _save(state: TenantState, tenant: Tenant, now: int, whole: bool, taken: bool, crowded: bool) -> None:
    """Take over what was decided, and when to decide again.

    `taken`: somebody took what was due; otherwise a job that is left has been due for as long as it was.
    """
    state.zeros = tenant.zeros
    state.running = tenant.running
    state.again = None
    since = now if taken or state.due is None else min(state.due, now)
    line = tenant.lines.get("")
    if line is None or line.empty:
        state.due = None if whole else now
        return
    first, placed = line.head(tenant.free > 0), line.placed
    onset = line.onset.placed if line.onset is not None else None
    if first is None:
        state.due = None
    elif placed is not None and line.agenda is line.gate.eligible:
        state.due = since
        state.again = since + PATIENCE if line.continuations else NEVER
    elif placed is None or (crowded and line.front is not first):
        state.due = since
        state.again = NEVER if placed is None else placed[0]
    else:
        state.due = min(NEVER, placed[0] if onset is None else min(placed[0], onset[0]))


# --- settle ---------------------------------------------------------------------------------------------


def settle(state: TenantState, cost: Cost, usage: Usage | None, now: int, slots: int = 1) -> None:
    """End a grant: `usage` replaces what was charged (None: it was right), and the slot is free.

    `slots`: how many it had, none if it was a continuation.
    """
    was_full = slots > 0 and state.running >= state.shape.concurrency
    state.running -= slots
    if usage is not None:
        correct(state, cost, usage, now)
    if was_full:
        move(state, now)


def correct(state: TenantState, cost: Cost, usage: Usage, now: int) -> None:
    """Replace what was charged for a grant by what was used."""
    charged, real = state.shape.amounts(cost), state.shape.amounts(usage)
    if charged != real:
        state.zeros = [z - c + r for z, c, r in zip(state.zeros, charged, real, strict=True)]
        move(state, now)


def move(state: TenantState, now: int) -> None:
    """Something changed for those who wait: nobody is granted before it did."""
    state.as_of = max(state.as_of, now)
    for line in state.lines.values():
        line.move(now)
    if state.ungated:
        state.due_by(now)


def requota(
    state: TenantState, quota: Quota, now: int, line: Sequence[StoredJob], gates: Mapping[str, SharedGate]
) -> list[StoredJob]:
    """Change the limits: levels are kept. Returns the jobs that can never fit any more, refused."""
    tenant, shape = state.tenant(), shape_of(quota)
    state.echoes = {
        name: (tenant.carry(kept[0], shape, now), *kept[1:]) for name, kept in state.echoes.items()
    }
    tenant.reshape(shape, now)
    state.quota, state.zeros = quota, tenant.zeros
    for job in line:
        never = shape.never(job.cost)
        job.refusal = None if never is None else Refusal(Reason.NEVER, 0, never)
    gone, state.work = [job for job in line if job.refusal is not None], [0] * len(state.zeros)
    for job in line:
        if not job.paid and job.refusal is None:
            state.add_work(job.cost, 1)
    state.waiting -= len(gone)
    for job in gone:
        if job.paid:
            tenant.refund(job.cost)  # in the buckets that the state has by now
        if (gate := gates.get(job.gate)) is not None:
            gate.count(job.cost, -1)
            gate.leave(state)
            gate.give_up(job.sequence, now)
    move(state, now)
    return gone
