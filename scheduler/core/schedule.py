"""How a line moves: events in time order, heads that become eligible, gates that let them pass.

A head first waits for its tenant's permits (an event of the engine), then for its gate's turn, permits and
slot. Everything is taken in one step, when all of it is there: a waiting job holds nothing. Events are
processed at the time at which they happened, however late anybody calls, and charged at that time.
"""

from __future__ import annotations

from heapq import heapreplace

from scheduler.core.agenda import DAY
from scheduler.core.entry import EXPIRED, RUNNING, Entry
from scheduler.core.fairness import fair_cost, weighted
from scheduler.core.gate import Gate
from scheduler.core.line import Line
from scheduler.core.overload import Overloaded
from scheduler.core.policy import Cause, Reason, Refusal
from scheduler.core.register import BEHIND, EXPIRE, FADE, GATE, HEAD, LADDER, LATE, RETURN

CATCH_UP = 50_000_000
"""Nanoseconds by which a wake-up may be late without moving a schedule (or one cost's time, if longer)."""


SLOT = Cause.SLOT


class Schedule(Overloaded):
    """How the state moves in time. `Engine` adds what callers may ask of it."""

    bounded = False
    """Whether there are bounds to what may be granted beside all limits: see `Stage`."""

    stopped: int | None = None
    """When somebody said stop: see `Stage`."""

    # --- time -------------------------------------------------------------------------------------

    def _advance(self, now: int) -> None:  # noqa: C901 - one case for each kind of event
        """Process every event up to `now`, each at its own time."""
        events = self.events
        while (event := events.first()) is not None and event[0] <= now:
            time, kind, _, owner = event
            if kind == HEAD and self._pass_plain(owner, time, now):
                continue
            events.pop()
            if kind in (HEAD, BEHIND):
                if self.touched or not self._pass(owner, time, now):
                    self._join_gate(owner)
            elif kind == RETURN:
                self._return(owner, time)
            elif kind == GATE:
                self.touched[owner] = None
            elif kind == EXPIRE:
                self._expire(owner, time)
            elif kind == LADDER:
                self._look_again(owner.entry, time)
            elif kind == LATE:
                self._place(owner.line, time)
            elif kind == FADE:
                self._forget(owner, time)
            else:
                self._arrive(owner, time)
            if self.touched and not self._more_arrive(time):
                self._flush(time, now)

    def _more_arrive(self, time: int) -> bool:
        """Whether somebody else becomes eligible in this nanosecond, before the gates choose."""
        event = self.events.first()
        return event is not None and event[0] == time and event[1] <= HEAD

    def _flush(self, time: int, now: int) -> None:
        """Let every gate that something happened to serve whom it can."""
        touched = self.touched
        while touched:
            gate = next(iter(touched)) if len(touched) == 1 else min(touched, key=Gate.oldest)
            del touched[gate]
            self._serve(gate, time, now)

    # --- gates ------------------------------------------------------------------------------------

    def _serve(self, gate: Gate, time: int, now: int) -> None:
        """Grant whoever can pass at `time`, in fair order; nobody passes the one whose turn it is."""
        while self.stopped is None:
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
            if self.bounded and self._stops(line, front, time):
                return
            if self.overload is not None and self._gives_up(line, front, time):
                continue  # it is somebody else's turn, or that of another line
            line.agenda.pop()
            # A grant that nobody else waits for leaves no debt.
            self._let_go(line, front, time, now, start if gate.backlogged else None)
        else:
            return
        if gate.placed is not None:
            self.events.drop(gate)
        if gate.eligible.first() is not None:
            gate.late[SLOT] = time
        elif not gate.backlogged:
            gate.fair.end_busy_period()

    def _pass(self, line: Line, time: int, now: int) -> bool:
        """Let a head straight through a gate at which nobody else is. False if it must queue there."""
        gate, front = line.gate, line.front
        if front is None or gate.eligible.items or gate.holding.items or gate.paused_until > time:
            return False
        if front.holder is None and (gate.free <= 0 or self.root.free <= 0):
            return False
        if not gate.affords(gate.shape.amounts(front.cost), time) or self._more_arrive(time):
            return False
        if self.overload is not None and self._gives_up(line, front, time):
            return True
        self._let_go(line, front, time, now, None)
        return True

    def _pass_plain(self, line: Line, time: int, now: int) -> bool:
        """The plain case of `_pass`, in one piece: the first of a line goes, the next one takes its place.

        One bucket, nobody at the gate, slots for more than one. False, and nothing done, if it is not that.
        """
        entry, gate, tenant, root = line.front, line.gate, line.tenant, self.root
        only, items, zeros = tenant.shape.only, self.events.items, tenant.zeros
        if (
            only is None
            or entry is None
            or not entry.plain
            or gate.zeros
            or gate.paused_until > time
            or gate.eligible.items
            or gate.holding.items
            or tenant.free <= 1
            or gate.free <= 1
            or root.free <= 1
            or self.touched
            or self.runs
            or self.overload is not None
            or len(tenant.lines) > 1
            or now - time > CATCH_UP
            or (len(items) > 1 and items[1][0] == time)
            or (len(items) > 2 and items[2][0] == time)
        ):
            return False
        following, unit, at = line.second(), only.unit, only.p * time
        exact = zeros[0] + unit
        floor = (at if exact <= at - only.p else exact) - only.room
        zero = exact if exact > floor else floor
        ready = -(-(zero + unit) // only.p)
        if following is not None and (not following.plain or ready <= time):
            return False
        zeros[0] = zero
        tenant.free -= 1
        gate.free -= 1
        root.free -= 1
        self.granted += 1
        self.waiting -= 1
        line.pop(unit)
        entry.state, entry.slot = RUNNING, time
        if entry.watched and time > entry.promised:
            entry.delayed = self._causes(entry)
        self.moved.append(entry)
        line.front = following
        if following is not None and ready >> DAY <= self.events.today:
            line.placed = item = (ready, HEAD, following.key, line)
            heapreplace(items, item)
        else:
            self.events.pop()
            if following is not None:
                self.events.put((ready, HEAD, following.key, line))
            elif line.empty:
                self._drop_line(line, time)
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
        tenant, gate = entry.owner, entry.shared
        amounts, shared = tenant.shape.amounts(entry.cost), gate.shape.amounts(entry.cost)
        if now - time > CATCH_UP:
            interval = max(tenant.shape.interval(amounts), gate.shape.interval(shared))
            time = self._catch_up(entry, time, now, max(CATCH_UP, interval))
        if not entry.paid:
            if line is None and tenant.lines:
                tenant.forget_tails()
            elif line is not None and line.tail is not None and not line.tail.follow(tenant, time, amounts):
                line.tail = None
            tenant.take(time, amounts)
        if gate.zeros:
            gate.take(time, shared)
        if entry.holder is None:
            tenant.free -= 1
            gate.free -= 1
            self.root.free -= 1
            if self.runs and (gate.free <= 0 or self.root.free <= 0):
                self._slots_changed(time)
        if start is not None:
            step = weighted(fair_cost(gate.shape, shared), tenant.shape.weight)
            entry.period = gate.serve(tenant.name, start, step)
        elif entry.period:
            entry.period = 0
        entry.state = RUNNING
        entry.slot = time
        self.granted += 1

    def _catch_up(self, entry: Entry, time: int, now: int, cap: int) -> int:
        """The slot time after a late wake-up: never further back than the cap, and a stall beyond it."""
        if now - time <= cap:
            return time
        self.stalls += 1
        self._worsen(entry.owner, Cause.STALL, now)
        entry.shared.delay(Cause.STALL, now)
        return now - cap

    def _free(self, entry: Entry, now: int, learn: bool) -> tuple[bool, bool, bool]:
        """Free the slots of a job that ends: whether it held the last one of its tenant, gate, and of all.

        `learn`: what it held them for tells how long others will; a try that was turned away does not.
        """
        tenant, gate, root, held = entry.owner, entry.shared, self.root, now - entry.slot
        tenant.free += 1
        gate.free += 1
        root.free += 1
        if learn:
            gate.hold += (held - gate.hold) >> 3
            root.hold += (held - root.hold) >> 3
        return tenant.free == 1, gate.free == 1, root.free == 1

    def _release(self, entry: Entry, now: int, learn: bool = True) -> None:
        """Free the slots of a job that ends, and let those who waited for them go."""
        tenant_was_full, gate_was_full, root_was_full = self._free(entry, now, learn)
        if not self.waiting:
            return  # nobody to let go
        if tenant_was_full:
            for line in entry.owner.lines.values():
                line.delay(Cause.SLOT, now)
            self._place_all(entry.owner, now)
        if gate_was_full or root_was_full:
            for gate in self.gates.values() if root_was_full else (entry.shared,):
                gate.late[SLOT] = now
                self.touched[gate] = None
            if self.runs:
                self._slots_changed(now)

    def _stops(self, line: Line, front: Entry, time: int) -> bool:
        """Go no further although a head could pass; only if `bounded`."""
        return False

    # --- by itself ----------------------------------------------------------------------------------

    def _arrive(self, entry: Entry, time: int) -> None:
        """A job comes in that was accepted elsewhere: see `Stage`."""

    def _return(self, entry: Entry, time: int) -> None:
        """A backoff is over: the job goes back to its line, by its key, if it can still fit its quota."""
        never = entry.owner.shape.never(entry.cost) or entry.shared.shape.never(entry.cost)
        if never is not None:
            self._drop(entry, Refusal(Reason.NEVER, 0, never), time)
            return
        if entry.expires is not None:
            self.events.put((entry.expires, EXPIRE, entry.key, entry))
        self._come_in(entry, Cause.RETRY, time)

    def _look_again(self, entry: Entry, time: int) -> None:
        """It has waited for as long as a rung of its ladder says: take that if it helps, or look later."""
        entry.alarm = None
        if not self._degrade(entry, time):
            self._watch(entry, time)

    def _expire(self, entry: Entry, time: int) -> None:
        """A deadline passed while the job waited."""
        self._end_waiting(entry, EXPIRED, time)
        self.moved.append(entry)
