"""Decide over shared gates that are kept elsewhere: the engine, over the lines that a store has loaded.

A store keeps a row per gate, per line, per tenant and per job. Under the locks of all gates it loads the
lines whose heads can come to stand at a gate by now, and of those that stand there the first ones in fair
order; `passage` has the engine play what happened since the last decision, in the order in which it happened.
Where it would have to know more than was loaded, it stops at that time, and the next decision goes on from
there; where only a worker is lacking, time goes on and the gate holds what it would pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scheduler.core.agenda import Calendar
from scheduler.core.claims import runs_elsewhere
from scheduler.core.engine import Engine
from scheduler.core.entry import REFUSED, WAITING, Entry
from scheduler.core.line import Line
from scheduler.core.overload import is_late, overtaken_until
from scheduler.core.policy import Cause, Overload, Reason, Refusal
from scheduler.core.quota import Quota
from scheduler.core.reach import Reach
from scheduler.core.register import ARRIVE, EXPIRE, RETURN, Event
from scheduler.core.shared import SharedGate
from scheduler.core.stored import StoredJob
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

    `reaches`: of the lines that go on behind their first jobs, how far they were loaded. What a store keeps
    of a gate and does not change by a grant (its `backlog`, and who has lines) is not looked after here.
    """

    bounded = True
    events: Events

    def __init__(
        self,
        begin: int,
        gates: Mapping[str, SharedGate],
        tenants: Mapping[str, Tenant],
        slots: int,
        reaches: Mapping[Name, Reach],
        overload: Overload | None,
    ) -> None:
        super().__init__(begin, lambda _: Quota(), {}, max(1, slots))
        self.max_waiting = 1 << 62
        self.gates.update(gates)
        self.shared = gates
        self.tenants = dict(tenants)
        self.events = Events()
        self.begin = begin
        self.skipped: set[Name] = set()
        self.reaches = reaches
        self.unknown: set[Name] = set()
        """Lines of which more must be loaded to say whose turn it is."""
        self.late: dict[Name, int | None] = {}
        """Until when another order held in lines."""
        self.overload = overload
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
                self._count_coming(job, 1)
                if kind == RETURN and not job.parked and job.tenant in job.shared.fair.entered:
                    self.shared[job.gate].absent.add(job.tenant)
            else:
                self._join(job, time)
        for tenant in self.tenants.values():
            if tenant.lines:
                self._place_all(tenant, self.begin)
        slots, short = self.root.free, any(gate.stuck is not None for gate in self.shared.values())
        if short:  # no worker had any left: those that are there now were not there before
            self.root.free = 0
        self._look_everywhere(self.begin, now)
        self._advance(now)
        if short and slots and self.events.stopped is None:
            self.root.free = slots
            self._look_everywhere(now, now)
            self._advance(now)

    def _count_coming(self, job: StoredJob, sign: int) -> None:
        reach = self.reaches.get((job.tenant, job.gate))
        if reach is not None and not job.parked:
            reach.coming += sign

    def _look_everywhere(self, time: int, now: int) -> None:
        self.touched.update(dict.fromkeys(self.gates.values()))
        self._flush(time, now)

    # --- who comes in -------------------------------------------------------------------------------

    def _join(self, job: StoredJob, time: int) -> Line | None:
        """Let a job into its line, if it can still fit; that is not arranged anew by this."""
        refusal = self._refusal(job, time)
        if refusal is not None and job.climbs:
            self.skipped.add((job.tenant, job.gate))
            return None  # it may go another way: somebody looks at its ladder
        if refusal is not None:
            job.state, job.refusal, job.since = REFUSED, refusal, time
            if job.paid:
                job.owner.refund(job.cost)
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
        self._count_coming(entry, -1)
        self.shared[entry.gate].absent.discard(entry.tenant)
        line = self._join(entry, time)
        if line is None:
            return
        front = line.front
        if front is None or entry.key < front.key or entry.holder is not None or self.overload is not None:
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
        line.front = self._head(line, slot, time)
        if line.front is None and line.empty and self.stopped is None:
            self._drop_line(line, time)

    def _head(self, line: Line, slot: bool, time: int) -> Entry | None:
        if self.overload is None:
            return line.head(slot)
        front, name = super()._head(line, slot, time), (line.tenant.name, line.gate.name)
        reach = self.reaches.get(name)
        self.unknown.discard(name)
        self.late[name] = overtaken_until(line) or self.late.get(name)
        if reach is None or reach.shows(line, front, slot, time, self.overload):
            return front
        self.unknown.add(name)
        if not reach.coming:
            self._halt(time)
        return None

    def _stand(self, line: Line, time: int, reserved: int) -> int:
        if line.front is None and self.stopped is not None:
            return reserved  # it keeps its place in the fair order, whoever of it will have that
        return super()._stand(line, time, reserved)

    def _halt(self, time: int) -> None:
        """Go no further: to say who goes next takes more than was loaded."""
        self.stopped = self.events.stopped = time

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
            # Whoever needs none does not pass it, until it has waited for one for a while.
            gate.stuck = time if gate.stuck is None else gate.stuck
            return True
        reach = self.reaches.get((line.tenant.name, gate.name))
        beyond = reach is not None and front.holder is None and front.key >= reach.last
        if beyond and self.overload is not None and is_late(line, time, self.overload):
            beyond = False  # it goes by another order
        if beyond or (gate.limit is not None and line.placed is not None and line.placed[:2] > gate.limit):
            self._halt(time)  # somebody who was not loaded may go before the next one
            return True
        if job:
            gate.stuck = None
        return False

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
