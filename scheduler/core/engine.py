"""The engine: what may be asked of the schedule, and what it decides. Pure; time is an argument.

Every operation takes `now` in integer nanoseconds, first advances to it, then acts, then lets whoever can go
go. Granted and refused jobs are appended to `moved`, in the order in which they must be told; `wake` is the
next time at which anything can happen. Nothing in here reads a clock, sleeps, logs or draws a number.
"""

from __future__ import annotations

from scheduler.core.account import shape_of
from scheduler.core.bucket import Scale
from scheduler.core.entry import RUN_BITS, RUNNING, SEQUENCE_BITS, WAITING, Entry
from scheduler.core.following import NEVER
from scheduler.core.ladder import Ladder
from scheduler.core.line import Line
from scheduler.core.outlook import gate_start, refuse, refuse_plain, slot_start
from scheduler.core.overload import latest_start
from scheduler.core.policy import Cause, Outlook, Reason, Refusal, decide
from scheduler.core.quota import LONGEST, nanoseconds
from scheduler.core.register import EXPIRE, RETURN
from scheduler.core.tenant import Tenant


class Engine(Ladder):
    """Decides who starts when. `max_waiting` bounds the waiting jobs of all tenants together."""

    max_waiting = 100_000

    @property
    def wake(self) -> int | None:
        """The next nanosecond at which `advance` would do anything."""
        event = self.events.first()
        return None if event is None else event[0]

    def advance(self, now: int) -> None:
        """Process all that has happened up to `now`."""
        self._advance(now)

    # --- offer --------------------------------------------------------------------------------------

    def offer(self, now: int, tenant_name: str, gate_name: str, entry: Entry) -> Refusal | None:
        """Grant the job at once, let it wait in line, or refuse it. Its `state` says which.

        A job granted here is not in `moved`: the caller holds the answer already.
        """
        events = self.events.items
        if events and events[0][0] <= now:
            self._advance(now)
        entry.owner = tenant = self.tenants.get(tenant_name) or self._tenant(tenant_name, now)
        entry.shared = gate = self.gates[gate_name]
        only, root = tenant.shape.only, self.root
        if only is None or not entry.plain or gate.zeros or gate.paused_until > now:
            if not self.waiting:
                settled = self._start_alone(entry, now)
            elif only is None or not entry.plain or gate.paused_until > now:
                settled = False
            else:
                settled = self._wait_behind(entry, only, now)
            return None if settled else self._decide(entry, now)
        # Nearly every call: one request, and one bucket at most in its way. It starts at once, or joins its
        # line at the back; that is said here in one piece. `_decide` has the rest, and decides this the same.
        if not tenant.lines and tenant.free > 0 and gate.free > 0 and root.free > 0:
            zeros, at = tenant.zeros, only.p * now
            exact = zeros[0] + only.unit
            if exact <= at:
                if self.waiting and (gate.eligible.items or gate.holding.items or self.runs):
                    return self._decide(entry, now)
                floor = at - only.room
                zeros[0] = exact if exact > floor or exact > at - only.p else floor
                tenant.free -= 1
                gate.free -= 1
                root.free -= 1
                self.granted += 1
                self.sequence = entry.sequence = self.sequence + 1
                entry.arrival = entry.promised = entry.slot = now
                entry.state = RUNNING
                return None
            if entry.policy.max_wait_ns == 0 and tenant.placed is not None:
                return self._refused(entry, refuse_plain(entry, tenant, gate, only, now))
        if self._wait_behind(entry, only, now):
            return None
        return self._decide(entry, now)

    def _decide(self, entry: Entry, now: int) -> Refusal | None:
        """What `offer` decides, by the general rules."""
        tenant, gate = entry.owner, entry.shared
        never = tenant.shape.never(entry.cost) or gate.shape.never(entry.cost)
        if never is not None and not entry.policy.ladder:
            return self._refuse_for_ever(entry, never, now)
        self.sequence += 1
        entry.place_in_order(now, self.sequence)
        if never is not None or not (self._startable(entry, now) or self._knock(entry, now)):
            if not self._step_aside(entry, now):
                return self._wait(entry, now) if never is None else self._refuse_for_ever(entry, never, now)
            if entry.deferred:
                return None
            if not self._startable(entry, now):
                return self._wait(entry, now)
        self._start(entry, now)
        return None

    def _refuse_for_ever(self, entry: Entry, never: tuple[str, int, int], now: int) -> Refusal:
        self._fade(entry.owner, now)
        return self._refused(entry, Refusal(Reason.NEVER, 0, never))

    def _start(self, entry: Entry, now: int) -> None:
        """Grant a job that nothing stands in front of."""
        tenant, gate = entry.owner, entry.shared
        entry.promised = now
        if entry.session is not None and entry.holder is None:
            self.sessions[tenant.name, entry.session] = []
        overtakes = bool(tenant.lines) and self._overtaken(entry, now)
        for line in tenant.lines.values():
            self._lift(line)
        tag = gate.fair.start(tenant.name) if gate.lines and gate.backlogged else None
        self._grant(entry, now, now, tag, None)
        if tenant.lines:
            self._place_all(tenant, now)
        self._flush(now, now)
        if overtakes:
            self._judge_all(tenant, now)
            self._flush(now, now)

    def _start_alone(self, entry: Entry, now: int) -> bool:
        """Start a job that has all it needs while nobody waits; `_decide` would do the same."""
        tenant, gate, root, cost = entry.owner, entry.shared, self.root, entry.cost
        if entry.session is not None or entry.holder is not None or entry.expires is not None:
            return False
        if tenant.free <= 0 or gate.free <= 0 or root.free <= 0 or gate.paused_until > now:
            return False
        zeros = None if tenant.shape.never(cost) else tenant.taken(tenant.shape.amounts(cost), now)
        if zeros is None:
            return False
        if gate.zeros:
            shared = None if gate.shape.never(cost) else gate.taken(gate.shape.amounts(cost), now)
            if shared is None:
                return False
            gate.zeros = shared
        tenant.zeros = zeros
        tenant.free -= 1
        gate.free -= 1
        root.free -= 1
        self.granted += 1
        self.sequence = entry.sequence = self.sequence + 1
        entry.arrival = entry.promised = entry.slot = now
        entry.state = RUNNING
        return True

    def _knock(self, entry: Entry, now: int) -> bool:
        """Let one job through a closed gate once that may be probed. False if the job is not the one."""
        gate = entry.shared
        if gate.closed_until is None or now < gate.closed_until or entry.holder is not None:
            return False
        gate.paused_until = now
        startable = self._startable(entry, now)
        gate.paused_until = NEVER
        if startable:
            gate.probe = entry
            gate.closed_until = now + nanoseconds("spend_probe", gate.upstream.spend_probe)
        return startable

    def _wait(self, entry: Entry, now: int) -> Refusal | None:
        """Judge a job that cannot start at once, and put it in line if it may wait."""
        tenant, gate, policy = entry.owner, entry.shared, entry.policy
        outlook, run = self._outlook(entry, now)
        known = tenant.lines.get(gate.name)
        # A continuation is bounded by the runs that hold a slot, not by the length of the line.
        full = entry.holder is None and (0 if known is None else known.length) >= policy.max_queue
        reason = decide(outlook, now, policy.max_wait_ns, full, latest_start(entry, self.overload))
        if gate.closed_until is not None:
            if tenant.placed is None:
                self._fade(tenant, now)
            wait = gate.wait_of_refused(gate.opens, now)
            return self._refused(entry, Refusal(Reason.SPEND_LIMIT, wait))
        if reason is None and self.waiting >= self.max_waiting:
            reason = Reason.MAX_WAITING
        if reason is not None:
            refusal = refuse(entry, now, run, outlook, reason, self.root)
            if tenant.placed is None:
                self._fade(tenant, now)
            return self._refused(entry, refusal)
        entry.promised = outlook.promised
        self._accept(entry, now)
        return None

    def _accept(self, entry: Entry, now: int) -> None:
        """Let a job wait: in its line, or outside of it behind one of its session."""
        line = self._line(entry.owner, entry.shared)
        entry.state, entry.gate = WAITING, entry.shared.name
        self.waiting += 1
        if entry.expires is not None:
            self.events.put((entry.expires, EXPIRE, entry.key, entry))
        line.tighten(entry.policy.max_wait_ns)
        if not self._join_session(line, entry):
            self._join_line(line, entry, now)

    def restore(self, now: int, tenant_name: str, gate_name: str, entry: Entry) -> None:
        """Let a job wait that was accepted before, and has its key and promise already."""
        self._advance(now)
        entry.owner, entry.shared = self._tenant(tenant_name, now), self.gates[gate_name]
        if entry.plain and not self.waiting and self._startable(entry, now):
            # Nobody else waits: it goes at once, which is most of what a store asks for.
            self._grant(entry, now, now, None, None)
            self.moved.append(entry)
        else:
            self._accept(entry, now)

    def _wait_behind(self, entry: Entry, only: Scale, now: int) -> bool:  # noqa: C901, PLR0912 - in one piece
        """Let a plain job that cannot start at once join at the back, behind its own line only.

        False, and nothing done, if that is for the general rules to decide.
        """
        tenant, gate, policy = entry.owner, entry.shared, entry.policy
        if self.overload is not None:
            return False
        line, work, length = tenant.lines.get(gate.name), 0, 0
        if line is not None:
            if len(tenant.lines) > 1 or line.continuations or not line.blocks:
                return False
            work, length = line.work[0], line.size + line.outside
        elif tenant.lines or gate.zeros:
            return False
        if length >= policy.max_queue or self.waiting >= self.max_waiting:
            return False
        zero, full = tenant.zeros[0], only.p * now - only.capacity
        start = -(-((zero if zero > full else full) + work + only.unit) // only.p)
        if start < now:
            start = now
        expected, bound, sequence = start, policy.max_wait_ns, self.sequence + 1
        # No head start, so nobody has a later key.
        entry.key = ((now << SEQUENCE_BITS) + sequence) << RUN_BITS
        if gate.zeros:
            shared = gate_start(entry, now, length)
            expected = shared if shared > start else start
        if tenant.free <= 0 or gate.free <= 0 or self.root.free <= 0:
            expected = slot_start(entry, now, expected, self.root, length, self.waiting)
        if expected - now > (LONGEST if bound is None else bound):
            return False
        if line is None:
            line = self._line(tenant, gate)
        if bound is not None and (line.tightest is None or bound < line.tightest):
            line.tightest = bound
        self.sequence = entry.sequence = sequence
        entry.arrival, entry.promised, entry.state = now, start, WAITING
        self.waiting += 1
        line.append(entry, only.unit)
        if gate.zeros:
            entry.gate = gate.name
            self._count_backlog(entry, 1)
        if line.front is None:
            self._place(line, now)
            self._flush(now, now)
        return True

    def _join_line(self, line: Line, entry: Entry, now: int) -> None:
        """Let a new job into its line: behind everybody, or by its key before some, who hear of it."""
        overtakes = self._overtaken(entry, now)
        if line.tail is not None:
            line.tail.start(entry.owner.shape.amounts(entry.cost))
        self._enter(line, entry, now)
        front = line.front
        if front is None or entry.key < front.key or entry.holder is not None or self.overload is not None:
            self._place(line, now)
            self._flush(now, now)
        if overtakes:
            self._judge_all(entry.owner, now)
            self._flush(now, now)

    # --- quotes -------------------------------------------------------------------------------------

    def quote(self, now: int, tenant_name: str, gate_name: str, entry: Entry) -> Outlook:
        """What `entry` could look forward to if it were offered now. Leaves no trace."""
        self._advance(now)
        known = self.tenants.get(tenant_name)
        entry.owner = known or Tenant(tenant_name, shape_of(self.quota_of(tenant_name)), now)
        entry.shared = self.gates[gate_name]
        entry.place_in_order(now, self.sequence + 1)
        if entry.holder is not None:
            entry.holder.calls -= 1
        if self._startable(entry, now):
            return Outlook(0, now, now, Reason.STRICT)
        return self._outlook(entry, now)[0]

    def expected(self, now: int, entry: Entry) -> Outlook:
        """The present outlook of a waiting job; of any other, where it is."""
        self._advance(now)
        if entry.state is not WAITING:
            return Outlook(0, entry.slot, entry.slot, Reason.STRICT)
        outlook, _ = self._outlook(entry, now)
        if entry.placed is not None and entry.placed[1] == RETURN:
            outlook = outlook._replace(expected=max(outlook.expected, entry.placed[0]))
        return outlook

    def delayed_by(self, entry: Entry) -> frozenset[Cause]:
        """The named causes that may have made a job late; of one that started, empty if it was on time."""
        if entry.state is WAITING:
            return self._causes(entry)
        return entry.delayed
