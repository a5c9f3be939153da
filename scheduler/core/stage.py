"""Decide over shared gates that are kept elsewhere: the engine, over the lines that a store has loaded.

A store keeps a row per gate, per line, per tenant and per job. Under the locks of all gates it loads the
lines whose heads can come to stand at a gate by now, and of those that stand there the first ones in fair
order; `claim` has the engine play what happened since the last decision, in the order in which it happened.
Where it would have to know more than was loaded, or a worker is lacking, it stops at that time, and the next
decision goes on from there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from scheduler.core.agenda import Calendar
from scheduler.core.claims import runs_elsewhere
from scheduler.core.engine import Engine
from scheduler.core.entry import REFUSED, WAITING, Entry
from scheduler.core.ledger import PATIENCE
from scheduler.core.line import Line
from scheduler.core.policy import Cause, Reason, Refusal
from scheduler.core.quota import Quota
from scheduler.core.register import ARRIVE, EXPIRE, RETURN, Event
from scheduler.core.shared import SharedGate
from scheduler.core.stored import LineState, StoredJob, TenantState
from scheduler.core.tenant import Tenant

Name = tuple[str, str]
"""(tenant, gate)."""


class Events(Calendar[Event]):
    """What is to come, until somebody says stop."""

    __slots__ = ("stopped",)

    def __init__(self) -> None:
        super().__init__()
        self.stopped: int | None = None

    def first(self) -> Event | None:
        """The next event; none once it was stopped."""
        return None if self.stopped is not None else super().first()


class Stage(Engine):
    """The engine, from `begin` on, for somebody with so many `slots` for jobs.

    `partial`: the lines that go on behind their last loaded job. What a store keeps of a gate and does not
    change by a grant (its `backlog`, and who has lines) is not looked after here.
    """

    bounded = True
    events: Events

    def __init__(
        self,
        begin: int,
        gates: Mapping[str, SharedGate],
        tenants: Mapping[str, Tenant],
        slots: int,
        partial: Collection[Name],
    ) -> None:
        super().__init__(begin, lambda _: Quota(), {}, max(1, slots))
        self.max_waiting = 1 << 62
        self.gates.update(gates)
        self.shared = gates
        self.tenants = dict(tenants)
        self.events = Events()
        self.begin = begin
        self.partial = partial
        if slots <= 0:
            self.root.free = 0

    def run(self, jobs: Sequence[tuple[int, StoredJob]], now: int) -> None:
        """Play what happens to jobs, each of which is there from a time on, until `now`."""
        for time, job in sorted(jobs, key=lambda pair: pair[1].key):
            job.owner, job.shared = self.tenants[job.tenant], self.gates[job.gate]
            if time > self.begin:
                # Whoever was here takes its place anew before a gate chooses that changed at the same time.
                kind = RETURN if job.parked or job.since < time else ARRIVE
                self.events.put((time, kind, job.key, job))
            else:
                self._join(job, time)
        for tenant in self.tenants.values():
            if tenant.lines:
                self._place_all(tenant, self.begin)
        self.touched.update(dict.fromkeys(self.gates.values()))
        self._flush(self.begin, now)
        self._advance(now)

    # --- who comes in -------------------------------------------------------------------------------

    def _join(self, job: StoredJob, time: int) -> Line | None:
        """Let a job into its line, if it can still fit; that is not arranged anew by this."""
        refusal = self._refusal(job, time)
        if refusal is not None:
            job.state, job.refusal, job.since = REFUSED, refusal, time
            self.moved.append(job)
            return None
        line = self._line(job.owner, job.shared)
        job.state = WAITING
        self.waiting += 1
        if job.expires is not None:
            self.events.put((job.expires, EXPIRE, job.key, job))
        self._enter(line, job, time)
        return line

    def _refusal(self, job: StoredJob, time: int) -> Refusal | None:
        """Why it waits in vain: a limit was lowered, or the gate was closed, since it was accepted."""
        gate = self.shared[job.gate]
        never = job.owner.shape.never(job.cost) or gate.shape.never(job.cost)
        if never is not None:
            return Refusal(Reason.NEVER, 0, never)
        if gate.closed_until is not None and gate.probe_id != job.sequence:
            return Refusal(Reason.SPEND_LIMIT, gate.wait_of_refused(gate.opens, time))
        return None

    def _arrive(self, entry: Entry, time: int) -> None:
        if not isinstance(entry, StoredJob):
            raise TypeError(f"entry: only stored jobs arrive, got {entry!r}")
        line = self._join(entry, time)
        if line is None:
            return
        front = line.front
        if front is None or entry.key < front.key or entry.holder is not None:
            self._place(line, time)

    _return = _arrive

    # --- whose turn it is ---------------------------------------------------------------------------

    def _choose_front(self, line: Line, time: int) -> None:
        # A run under way must not stand behind a head that waits for the very slot the run holds.
        tenant, gate = line.tenant, self.shared[line.gate.name]
        self._lift(line)
        slot = tenant.free > 0
        if line.continuations:
            slot = slot and gate.free > 0 and not (gate.crowded and self.root.free <= 0)
        line.front = line.head(slot)
        if line.front is None and line.empty:
            self._drop_line(line, time)

    def _join_gate(self, line: Line) -> None:
        front, gate = line.front, self.shared[line.gate.name]
        if front is None or front.holder is not None or not runs_elsewhere(front):
            super()._join_gate(line)
        else:
            line.agenda = gate.calling
            line.agenda.put((gate.fair.enter(line.tenant.name), front.key, line))
            self.touched[gate] = None

    def _stops(self, line: Line, front: Entry, time: int) -> bool:
        gate = self.shared[line.gate.name]
        job = front.holder is None and not runs_elsewhere(front)
        if job and self.root.free <= 0:
            gate.stuck = time if gate.stuck is None else gate.stuck
        elif (line.tenant.name, gate.name) not in self.partial or front.holder is not None or line.size > 1:
            if job:
                gate.stuck = None
                return False
            gate.left -= 1
            if gate.left >= 0:
                return False
        self.events.stopped = time
        return True

    def _pass(self, line: Line, time: int, now: int) -> bool:
        return False  # the short ways know no bounds

    _pass_plain = _pass

    def _grant(self, entry: Entry, time: int, now: int, start: int | None, line: Line | None) -> None:
        super()._grant(entry, time, now, start, line)
        if runs_elsewhere(entry) and entry.holder is None:
            self.root.free += 1

    # --- what a store does itself -------------------------------------------------------------------

    def _end_waiting(self, entry: Entry, state: object, time: int) -> None:
        super()._end_waiting(entry, state, time)  # type: ignore[arg-type]
        if isinstance(entry, StoredJob):
            entry.since = time

    def _leave_session(self, entry: Entry, time: int, outside: bool) -> None:
        pass

    def _judge(self, line: Line, now: int) -> None:
        pass

    def _fade(self, tenant: Tenant, now: int) -> None:
        pass

    def _worsen(self, tenant: Tenant, cause: Cause, until: int) -> None:
        pass


def claim(
    gates: Mapping[str, SharedGate],
    states: Mapping[str, TenantState],
    jobs: Sequence[StoredJob],
    slots: int,
    now: int,
    partial: Collection[Name],
) -> list[StoredJob]:
    """Grant what can pass by `now`, at most `slots` jobs; what moved, in order: granted, expired or refused.

    `jobs`: the first ones of each line of the tenants in `states`, those whose backoff is over, and all
    continuations. Callers that run elsewhere take none of the slots; of these, and of continuations, a gate
    lets as many go as its `left` says.
    """
    begin = max(gate.processed for gate in gates.values())
    for gate in gates.values():
        gate.crowded = slots <= 0 and gate.stuck is not None and gate.stuck + PATIENCE <= now
        gate.here(states.values())
    kept = {gate.name: (list(gate.backlog), gate.lines, gate.crowd) for gate in gates.values()}
    tenants = {name: state.tenant() for name, state in states.items()}
    stage = Stage(begin, gates, tenants, slots, partial)
    stage.run([(max(job.since, states[job.tenant].as_of), job) for job in jobs], max(now, begin))
    stopped = stage.events.stopped
    end = max(now, begin) if stopped is None else stopped
    moved = [job for job in stage.moved if isinstance(job, StoredJob)]
    for gate in gates.values():
        gate.backlog, gate.lines, gate.crowd = kept[gate.name]
        gate.processed = end
    for job in moved:
        _leave(gates[job.gate], states[job.tenant], job)
    for name, state in states.items():
        state.zeros, state.running = tenants[name].zeros, tenants[name].running
        for line in state.lines.values():
            _save(line, gates[line.gate], tenants[name], end, (name, line.gate) in partial)
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


def _save(line: LineState, gate: SharedGate, tenant: Tenant, end: int, partial: bool) -> None:
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
        if line.waiting and partial and (here is None or here.empty):
            line.due = end
    elif here.agenda in (gate.eligible, gate.calling, gate.holding):
        line.start, line.front = here.placed[:2]
        line.calls = here.agenda is not gate.eligible
    else:
        line.due = here.placed[0]


def _when(gate: SharedGate, end: int) -> None:
    """When somebody can pass at the earliest, and when one can who needs no worker."""
    gate.due = gate.calls = None
    gate.crowded = False
    if gate.eligible.first() is None:
        gate.stuck = None
    turn = gate.turn(gate.free > 0)
    if turn is None or turn[2].front is None:
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
    return max(end, gate.paused_until, gate.ready(gate.shape.amounts(line.front.cost)))
