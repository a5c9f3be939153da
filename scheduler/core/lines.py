"""Who stands where: in line, at a gate, or outside for a while; and who leaves without a grant."""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

from scheduler.core.entry import REFUSED, RUN_BITS, SEQUENCE_BITS, Entry, State
from scheduler.core.gate import Gate
from scheduler.core.line import Line
from scheduler.core.outlook import in_order, too_long
from scheduler.core.policy import Cause, Reason, Refusal
from scheduler.core.register import BEHIND, HEAD, Register
from scheduler.core.tenant import Tenant

_key = attrgetter("key")


def _front_key(line: Line) -> int:
    return 0 if line.front is None else line.front.key


class Lines(Register):
    """Where jobs wait. `Schedule` adds how they move in time."""

    # --- in line ------------------------------------------------------------------------------------

    def _line(self, tenant: Tenant, gate: Gate) -> Line:
        """The tenant's line at the gate, made when the first job has to wait."""
        line = tenant.lines.get(gate.name)
        if line is None:
            tenant.forget_tails()
            line = tenant.lines[gate.name] = Line(tenant, gate)
            gate.lines += 1
            gate.crowd += tenant.shape.share
        return line

    def _drop_line(self, line: Line, time: int) -> None:
        tenant, gate = line.tenant, line.gate
        if tenant.lines.get(gate.name) is line:
            del tenant.lines[gate.name]
            gate.fair.leave(tenant.name)
            gate.lines -= 1
            gate.crowd = gate.crowd - tenant.shape.share if gate.lines else 0.0
            self._fade(tenant, time)

    def _enter(self, line: Line, entry: Entry, now: int) -> None:
        """Let a job into its line."""
        if entry.outside:
            entry.outside = False
            line.outside -= 1
        line.push(entry)
        if entry.holder is not None:
            self.runs[line] = None
        if entry.shared.backlog:
            self._count_backlog(entry, 1)
        if entry.policy.ladder:
            self._watch(entry, now)

    def _leave(self, line: Line, entry: Entry) -> None:
        """Take a job out of its line, or from outside it."""
        if entry.outside:
            line.outside -= 1
            entry.outside = False
        else:
            line.remove(entry)
            if entry.holder is not None and not line.continuations:
                del self.runs[line]
            if entry.shared.backlog:
                self._count_backlog(entry, -1)
        if entry.placed is not None:
            self.events.drop(entry)
        if entry.alarm is not None:
            self._silence(entry)
        self.waiting -= 1

    def _silence(self, entry: Entry) -> None:
        """Look at a job no more."""
        if entry.alarm is not None and entry.alarm.placed is not None:
            self.events.drop(entry.alarm)
        entry.alarm = None

    def _count_backlog(self, entry: Entry, sign: int) -> None:
        for index, amount in enumerate(entry.shared.shape.amounts(entry.cost)):
            entry.shared.backlog[index] += sign * amount

    # --- the front of a line ------------------------------------------------------------------------

    def _place(self, line: Line, time: int) -> None:
        """Arrange the turn of whoever is at the front of the line now."""
        if len(line.tenant.lines) > 1:
            self._place_all(line.tenant, time)
        else:
            self._choose_front(line, time)
            self._stand(line, time, time)

    def _place_all(self, tenant: Tenant, time: int) -> None:
        """Arrange all lines of a tenant anew: its permits go to its oldest job first, at whatever gate."""
        lines = list(tenant.lines.values())
        if len(lines) == 1:
            self._choose_front(lines[0], time)
            self._stand(lines[0], time, time)
            return
        for line in lines:
            self._choose_front(line, time)
        lines.sort(key=_front_key)
        reserved = time
        for line in lines:
            reserved = self._stand(line, time, reserved)

    def _lift(self, line: Line) -> None:
        """Take the front of a line from where it is placed, if it is."""
        if line.placed is not None and line.agenda is not None:
            if line.agenda is not self.events:
                self.touched[line.gate] = None
            line.agenda.drop(line)

    def _choose_front(self, line: Line, time: int) -> None:
        tenant, gate = line.tenant, line.gate
        self._lift(line)
        slot = tenant.free > 0
        if line.continuations:
            # A run under way must not stand behind a head that waits for the very slot the run holds.
            slot = slot and gate.free > 0 and self.root.free > 0
        line.front = line.head(slot) if self.overload is None else self._head(line, slot, time)
        if line.front is None and line.empty:
            self._drop_line(line, time)

    def _head(self, line: Line, slot: bool, time: int) -> Entry | None:
        """Whose turn it is in a line that may be late: see `Overloaded`."""
        raise NotImplementedError

    def _stand(self, line: Line, time: int, reserved: int) -> int:
        """Let the front wait for its permits, not before `reserved`, or go to its gate.

        Until the time that is returned, the permits that come are meant for those placed so far.
        """
        front, tenant = line.front, line.tenant
        if front is None:
            line.gate.fair.leave(tenant.name)
            return reserved
        only = tenant.shape.only
        if only is not None and front.plain:
            own = -(-(tenant.zeros[0] + only.unit) // only.p)
        else:
            own = time if front.paid else tenant.ready(tenant.shape.amounts(front.cost))
        ready = own if own > reserved or front.paid else reserved
        if ready <= time:
            self._join_gate(line)
            return reserved
        line.gate.fair.leave(tenant.name)
        line.agenda = self.events
        self.events.put((ready, HEAD if own > reserved else BEHIND, front.key, line))
        return ready

    def _join_gate(self, line: Line) -> None:
        """The front of the line has its tenant's permits: it stands at the gate from now on."""
        gate, front = line.gate, line.front
        if front is not None:
            line.agenda = gate.eligible if front.holder is None else gate.holding
            line.agenda.put((gate.fair.enter(line.tenant.name), front.key, line))
            self.touched[gate] = None

    def _slots_changed(self, time: int) -> None:
        """Slots that all share ran out or came back: it may be a continuation's turn, or no longer."""
        for line in list(self.runs):
            if line.parted:
                line.delay(Cause.SLOT, time)
                self._place(line, time)

    # --- outside the line ---------------------------------------------------------------------------

    def _join_session(self, line: Line, entry: Entry) -> bool:
        """Stand outside the line if another job of the session is in it or running. True if so."""
        if entry.session is None or entry.holder is not None:
            return False
        behind = self.sessions.get((entry.owner.name, entry.session))
        if behind is None:
            self.sessions[entry.owner.name, entry.session] = []
            return False
        insort(behind, entry, key=_key)
        entry.outside = True
        line.outside += 1
        return True

    def _leave_session(self, entry: Entry, time: int, outside: bool) -> None:
        """The job is over: let the next one of its session into the line, by its key."""
        if entry.session is None or entry.holder is not None:
            return
        behind = self.sessions[entry.owner.name, entry.session]
        if outside and entry in behind:
            behind.remove(entry)
        elif behind:
            self._come_in(behind.pop(0), Cause.SESSION, time)
        else:
            del self.sessions[entry.owner.name, entry.session]

    def _come_in(self, entry: Entry, cause: Cause, time: int) -> None:
        """Let a job that stood outside into its line, by its key; those behind it hear of it."""
        line = self._line(entry.owner, entry.shared)
        self._worsen(entry.owner, cause, time)
        self._enter(line, entry, time)
        self._place(line, time)
        self._judge_all(entry.owner, time)

    # --- leaving without a grant --------------------------------------------------------------------

    def _end_waiting(self, entry: Entry, state: State, time: int) -> None:
        """Take a waiting job away for good; those behind it move up at that instant."""
        line = entry.owner.lines[entry.shared.name]
        outside = entry.outside
        self._leave(line, entry)
        entry.state = state
        entry.owner.forget_tails()
        self._leave_session(entry, time, outside)
        if entry.paid:
            self._refund(entry, time)
        else:
            self._close_ranks(line, entry, time)

    def _refund(self, entry: Entry, time: int) -> None:
        """Return what a try was charged that the upstream refused, since the job will have no other."""
        tenant, entry.paid = entry.owner, False
        tenant.refund(entry.cost)
        tenant.forget_tails()
        self._place_all(tenant, time)

    def _close_ranks(self, line: Line, gone: Entry, time: int) -> None:
        """Arrange the turn of a line anew that a job left, if it may be another's now."""
        if line.front is gone or line.empty or self.overload is not None:
            self._place(line, time)

    def _drop(self, entry: Entry, refusal: Refusal, time: int) -> None:
        """Refuse a job that waits."""
        self._end_waiting(entry, REFUSED, time)
        entry.refusal = refusal
        self.moved.append(entry)

    def _judge_all(self, tenant: Tenant, time: int) -> None:
        for line in list(tenant.lines.values()):
            self._judge(line, time)

    def _judge(self, line: Line, now: int) -> None:
        """Refuse who would now wait longer than allowed, by the tenant's own buckets and a pause."""
        begin = max(now, line.gate.opens)
        if line.tightest is None or not line.size or line.gate.closed_until is not None:
            return  # at a closed gate everybody is refused, and told why
        if self._surely_in_time(line, begin):
            return
        for entry, start in too_long(line.tenant, line.gate, now, list(in_order(line.tenant))):
            if not entry.policy.ladder or not self._degrade(entry, now):
                self._drop(entry, Refusal(Reason.MAX_WAIT, start - now), now)

    def _degrade(self, entry: Entry, now: int) -> bool:
        """Serve a job in another way, if it has a ladder and that helps: see `Ladder`. True if so."""
        return False

    def _watch(self, entry: Entry, now: int) -> None:
        """Have a job that waits looked at again for its ladder: see `Ladder`."""

    def _surely_in_time(self, line: Line, begin: int) -> bool:
        """Whether even the last job starts within the tightest bound of the oldest: no need to walk."""
        tenant, first = line.tenant, line.head(True)
        if first is None or line.tightest is None:
            return False
        work = map(sum, zip(*(other.work for other in tenant.lines.values()), strict=True))
        return tenant.surely(work, begin) - (first.key >> SEQUENCE_BITS + RUN_BITS) <= line.tightest

    def _worsen(self, tenant: Tenant, cause: Cause, until: int) -> None:
        """Note a cause that may delay whoever of the tenant has arrived by `until`."""
        for line in tenant.lines.values():
            line.delay(cause, until)
            line.tail = None

    def _overtaken(self, entry: Entry, now: int) -> bool:
        """Note whom of its tenant a new job goes before, by its priority or for its run. True if anybody."""
        cause = Cause.PRIORITY if entry.holder is None else Cause.CONTINUATION
        overtaken = [line for line in entry.owner.lines.values() if not line.is_last(entry.key)]
        for line in overtaken:
            line.delay(cause, now)
            line.tail = None
        return bool(overtaken)

    def _causes(self, entry: Entry) -> frozenset[Cause]:
        """The named causes that were at work in the job's line or at its gate since it arrived."""
        line = entry.owner.lines.get(entry.shared.name)
        stamps = dict(entry.shared.late)
        for cause, until in ((line.late or {}) if line is not None else {}).items():
            stamps[cause] = max(until, stamps.get(cause, until))
        causes = {cause for cause, until in stamps.items() if until >= entry.arrival}
        if entry.outside and entry.session is not None:
            causes.add(Cause.SESSION)
        return frozenset(causes)
