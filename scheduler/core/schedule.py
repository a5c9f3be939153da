"""How a line moves: events in time order, heads that become eligible, gates that let them pass.

A head first waits for its tenant's permits (an event of the engine), then for its gate's turn, permits and
slot. Everything is taken in one step, when all of it is there: a waiting job holds nothing. Events are
processed at the time at which they happened, however late anybody calls, and charged at that time.
"""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

from scheduler.core.entry import Entry, State
from scheduler.core.fairness import fair_cost, weighted
from scheduler.core.gate import Gate
from scheduler.core.line import Line
from scheduler.core.policy import Cause
from scheduler.core.register import EXPIRE, GATE, HEAD, RETURN, Register
from scheduler.core.tenant import Tenant

CATCH_UP = 50_000_000
"""Nanoseconds by which a wake-up may be late without moving a schedule (or one cost's time, if longer)."""

_key = attrgetter("key")


class Schedule(Register):
    """How the state moves in time. `Engine` adds what callers may ask of it."""

    # --- time -------------------------------------------------------------------------------------

    def _advance(self, now: int) -> None:
        """Process every event up to `now`, each at its own time."""
        events = self.events
        while (event := events.first()) is not None and event[0] <= now:
            time, kind, _, owner = event
            events.pop()
            if kind == HEAD:
                if self.touched or not self._pass(owner, time, now):
                    self._join_gate(owner)
            elif kind == RETURN:
                self._return(owner, time)
            elif kind == GATE:
                self.touched[owner] = None
            elif kind == EXPIRE:
                self._expire(owner, time)
            else:
                self._forget(owner, time)
            if self.touched and not self._more_arrive(time):
                self._flush(time, now)

    def _more_arrive(self, time: int) -> bool:
        """Whether somebody else becomes eligible in this nanosecond, before the gates choose."""
        event = self.events.first()
        return event is not None and event[0] == time and event[1] <= HEAD

    def _flush(self, time: int, now: int) -> None:
        """Let every gate that something happened to serve whom it can."""
        while self.touched:
            gate = next(iter(self.touched))
            del self.touched[gate]
            self._serve(gate, time, now)

    # --- lines ------------------------------------------------------------------------------------

    def _line(self, tenant: Tenant, gate: Gate) -> Line:
        """The tenant's line at the gate, made when the first job has to wait."""
        line = tenant.lines.get(gate.name)
        if line is None:
            line = tenant.lines[gate.name] = Line(tenant, gate)
            gate.lines += 1
            gate.crowd += tenant.shape.quota.weight
        return line

    def _enter(self, line: Line, entry: Entry) -> None:
        """Let a job into its line."""
        if entry.outside:
            entry.outside = False
        line.push(entry)
        if entry.gate.backlog:
            self._count_backlog(entry, 1)

    def _leave(self, line: Line, entry: Entry) -> None:
        """Take a job out of its line, or from outside it."""
        if entry.outside:
            line.outside -= 1
            entry.outside = False
        else:
            line.remove(entry)
            if entry.gate.backlog:
                self._count_backlog(entry, -1)
        if entry.placed is not None:
            self.events.drop(entry)
        self.waiting -= 1

    def _count_backlog(self, entry: Entry, sign: int) -> None:
        gate = entry.gate
        for index, amount in enumerate(gate.shape.amounts(entry.cost)):
            gate.backlog[index] += sign * amount

    def _place(self, line: Line, time: int) -> None:
        """Arrange the turn of whoever is at the front of the line now."""
        tenant, gate = line.tenant, line.gate
        if line.placed is not None and line.agenda is not None:
            if line.agenda is not self.events:
                self.touched[gate] = None
            line.agenda.drop(line)
        slot = tenant.has_slot
        if line.continuations:
            # A run under way must not stand behind a head that waits for the very slot the run holds.
            slot = slot and gate.has_slot and self.root.has_slot
        front = line.front = line.head(slot)
        if front is None:
            if line.empty:
                self._drop_line(line, time)
            return
        ready = time if front.paid else tenant.ready(tenant.shape.amounts(front.cost))
        if ready > time:
            line.agenda = self.events
            self.events.put((ready, HEAD, front.key, line))
        else:
            self._join_gate(line)

    def _join_gate(self, line: Line) -> None:
        """The front of the line has its tenant's permits: it stands at the gate from now on."""
        gate, front = line.gate, line.front
        if front is not None:
            line.agenda = gate.eligible if front.holder is None else gate.holding
            line.agenda.put((gate.fair.start(line.tenant.name), front.key, line))
            self.touched[gate] = None

    def _place_all(self, tenant: Tenant, time: int) -> None:
        """Arrange all lines of a tenant anew after its permits or slots changed."""
        for line in list(tenant.lines.values()):
            self._place(line, time)

    def _drop_line(self, line: Line, time: int) -> None:
        tenant, gate = line.tenant, line.gate
        if tenant.lines.get(gate.name) is line:
            del tenant.lines[gate.name]
            gate.lines -= 1
            gate.crowd = gate.crowd - tenant.shape.quota.weight if gate.lines else 0.0
            self._fade(tenant, time)

    # --- gates ------------------------------------------------------------------------------------

    def _serve(self, gate: Gate, time: int, now: int) -> None:
        """Grant whoever the gate can let pass at `time`, in fair order; nobody passes the one whose turn it is."""
        while True:
            slot = gate.free > 0 and self.root.free > 0
            turn = gate.turn(slot)
            if turn is None:
                break
            start, _, line = turn
            front = line.front
            if front is None or line.agenda is None:
                raise RuntimeError("a line stands at a gate without a front")
            ready = max(gate.paused_until, gate.ready(gate.shape.amounts(front.cost)))
            if ready > time:
                gate.delay(Cause.PAUSE if gate.paused_until > time else Cause.GATE, ready)
                self._wake_gate(gate, ready)
                return
            line.agenda.pop()
            # A grant that nobody else waits for leaves no debt.
            self._let_go(line, front, time, now, start if gate.backlogged else None)
        if gate.placed is not None:
            self.events.drop(gate)
        if gate.eligible.first() is not None:
            gate.delay(Cause.SLOT, time)
        elif gate.holding.first() is None:
            gate.fair.end_busy_period()

    def _pass(self, line: Line, time: int, now: int) -> bool:
        """Let a head straight through a gate at which nobody else waits or arrives. False if it must queue."""
        gate, front = line.gate, line.front
        if front is None or gate.eligible.items or gate.holding.items or gate.paused_until > time:
            return False
        if front.holder is None and (gate.free <= 0 or self.root.free <= 0):
            return False
        if not gate.affords(gate.shape.amounts(front.cost), time) or self._more_arrive(time):
            return False
        self._let_go(line, front, time, now, None)
        return True

    def _let_go(self, line: Line, front: Entry, time: int, now: int, start: int | None) -> None:
        """Grant the front of a line, and arrange the turn of those behind it."""
        self._leave(line, front)
        self._grant(front, time, now, start, line)
        if front.watched and front.slot > front.promised:
            front.delayed = self._causes(front)
        self.moved.append(front)
        self._place_all(line.tenant, time)

    def _wake_gate(self, gate: Gate, ready: int) -> None:
        if gate.placed is not None:
            if gate.placed[0] == ready:
                return
            self.events.drop(gate)
        self.sequence += 1
        self.events.put((ready, GATE, self.sequence, gate))

    def _grant(self, entry: Entry, time: int, now: int, start: int | None, line: Line | None) -> None:
        """Charge permits and take slots, in one step. `start` is the tag, where others wait at the gate."""
        tenant, gate = entry.tenant, entry.gate
        amounts, shared = tenant.shape.amounts(entry.cost), gate.shape.amounts(entry.cost)
        if now - time > CATCH_UP:
            interval = max(tenant.shape.interval(amounts), gate.shape.interval(shared))
            time = self._catch_up(time, now, max(CATCH_UP, interval), line)
        if line is not None and line.tail is not None:
            line.tail.follow(tenant, time, amounts)
            if line.tail.broken:
                line.tail = None
        if not entry.paid:
            tenant.take(time, amounts)
        if gate.zeros:
            gate.take(time, shared)
        if entry.holder is None:
            tenant.free -= 1
            gate.free -= 1
            self.root.free -= 1
        if start is not None:
            step = weighted(fair_cost(gate.shape, shared), tenant.shape.weight)
            gate.fair.serve(tenant.name, start, step)
        entry.state = State.RUNNING
        entry.slot = time
        self.granted += 1

    def _catch_up(self, time: int, now: int, cap: int, line: Line | None) -> int:
        """The slot time after a late wake-up: never further back than the cap, and a stall beyond it."""
        if now - time <= cap:
            return time
        self.stalls += 1
        if line is not None:
            line.delay(Cause.STALL, now)
            line.gate.delay(Cause.STALL, now)
        return now - cap

    def _release(self, entry: Entry, now: int) -> None:
        """Free the slots of a job that ends, and let those who waited for them go."""
        if entry.holder is not None:
            return
        tenant, gate, held = entry.tenant, entry.gate, now - entry.slot
        tenant_was_full = tenant.release(held)
        gate_was_full = gate.release(held)
        root_was_full = self.root.release(held)
        if not self.waiting:
            return  # nobody to let go
        if tenant_was_full:
            for line in tenant.lines.values():
                line.delay(Cause.SLOT, now)
            self._place_all(tenant, now)
        if gate_was_full or (root_was_full and len(self.gates) == 1):
            gate.late[Cause.SLOT] = now
            self.touched[gate] = None
        if root_was_full and len(self.gates) > 1:
            waiting = [(turn[1], other.name, other) for other in self.gates.values() if (turn := other.turn(True))]
            for _, _, other in sorted(waiting):
                other.late[Cause.SLOT] = now
                self.touched[other] = None

    # --- sessions, backoff, deadlines ---------------------------------------------------------------

    def _join_session(self, line: Line, entry: Entry) -> bool:
        """Stand outside the line if another job of the session is in it or running. True if so."""
        if entry.session is None:
            return False
        behind = self.sessions.get((entry.tenant.name, entry.session))
        if behind is None:
            self.sessions[entry.tenant.name, entry.session] = []
            return False
        insort(behind, entry, key=_key)
        entry.outside = True
        line.outside += 1
        return True

    def _leave_session(self, entry: Entry, time: int, outside: bool) -> None:
        """The job is over: let the next one of its session into the line, by its key."""
        if entry.session is None or entry.holder is not None:
            return
        behind = self.sessions[entry.tenant.name, entry.session]
        if outside and entry in behind:
            behind.remove(entry)
        elif behind:
            following = behind.pop(0)
            line = self._line(following.tenant, following.gate)
            line.outside -= 1
            line.delay(Cause.SESSION, time)
            line.tail = None
            self._enter(line, following)
            self._place(line, time)
        else:
            del self.sessions[entry.tenant.name, entry.session]

    def _return(self, entry: Entry, time: int) -> None:
        """A backoff is over: the job goes back to its line, by its key."""
        line = self._line(entry.tenant, entry.gate)
        line.outside -= 1
        line.delay(Cause.RETRY, time)
        line.tail = None
        self._enter(line, entry)
        if entry.deadline is not None:
            self.events.put((entry.deadline, EXPIRE, entry.key, entry))
        self._place(line, time)

    def _expire(self, entry: Entry, time: int) -> None:
        """A deadline passed while the job waited."""
        self._end_waiting(entry, State.EXPIRED, time)
        self.moved.append(entry)

    def _end_waiting(self, entry: Entry, state: State, time: int) -> None:
        """Take a waiting job away for good; those behind it move up at that instant."""
        line = entry.tenant.lines[entry.gate.name]
        outside = entry.outside
        self._leave(line, entry)
        entry.state = state
        line.tail = None
        self._leave_session(entry, time, outside)
        if line.front is entry or line.empty:
            self._place(line, time)

    def _causes(self, entry: Entry) -> frozenset[Cause]:
        """The named causes that were at work in the job's line or at its gate since it arrived."""
        line = entry.tenant.lines.get(entry.gate.name)
        stamps = dict(entry.gate.late)
        for cause, until in ((line.late or {}) if line is not None else {}).items():
            stamps[cause] = max(until, stamps.get(cause, until))
        causes = {cause for cause, until in stamps.items() if until >= entry.arrival}
        if entry.outside and entry.session is not None:
            causes.add(Cause.SESSION)
        return frozenset(causes)
