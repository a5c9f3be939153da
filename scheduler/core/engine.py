"""The engine: what may be asked of the schedule, and what it decides. Pure; time is an argument.

Every operation takes `now` in integer nanoseconds, first advances to it, then acts, then lets whoever can go
go. Granted and refused jobs are appended to `moved`, in the order in which they must be told; `wake` is the
next time at which anything can happen. Nothing in here reads a clock, sleeps, logs or draws a number.
"""

from __future__ import annotations

from scheduler.core.account import shape_of
from scheduler.core.changes import Changes
from scheduler.core.entry import Entry, State
from scheduler.core.fairness import fair_cost, weighted
from scheduler.core.line import Line
from scheduler.core.outlook import expect, line_end, line_part, own_start, refuse
from scheduler.core.policy import Cause, Outlook, Reason, Refusal, decide
from scheduler.core.gate import Gate
from scheduler.core.quota import ONE, Cost, Usage
from scheduler.core.register import EXPIRE, RETURN
from scheduler.core.tenant import Tenant

NOTHING = Usage(0, 0, 0)


class Engine(Changes):
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

    def everyone(self) -> list[Entry]:
        """All waiting jobs: in their lines, behind a job of their session, and in backoff."""
        inside = [e for tenant in self.tenants.values() for line in tenant.lines.values() for e in line]
        behind = [e for parked in self.sessions.values() for e in parked]
        backoff = [item[-1] for item in self.events.items if item[1] == RETURN and item[-1].placed is item]
        return inside + behind + backoff

    # --- offer --------------------------------------------------------------------------------------

    def offer(self, now: int, tenant_name: str, gate_name: str, entry: Entry) -> Refusal | None:
        """Grant the job at once, let it wait in line, or refuse it. Its `state` says which.

        A job granted here is not in `moved`: the caller holds the answer already.
        """
        events = self.events.items
        if events and events[0][0] <= now:
            self._advance(now)
        entry.tenant = tenant = self.tenants.get(tenant_name) or self._tenant(tenant_name, now)
        entry.gate = gate = self.gates[gate_name]
        if entry.cost is ONE and not gate.lines and self._at_once(entry, tenant, gate, now):
            return None
        never = tenant.shape.never(entry.cost) or gate.shape.never(entry.cost)
        if never is not None:
            return self._refused(entry, Refusal(Reason.NEVER, 0, never))
        self.sequence += 1
        entry.place_in_order(now, self.sequence)
        if not self._startable(entry, now):
            return self._wait(entry, now)
        entry.promised = now
        if entry.session is not None and entry.holder is None:
            self.sessions[tenant_name, entry.session] = []
        tag = gate.fair.start(tenant_name) if gate.lines and gate.backlogged else None
        self._grant(entry, now, now, tag, None)
        if tenant.lines:
            self._place_all(tenant, now)
            self._flush(now, now)
        return None

    def _at_once(self, entry: Entry, tenant: Tenant, gate: Gate, now: int) -> bool:
        """The plain case of what follows in `offer`, in one piece, because nearly every call is it.

        One request, one bucket, a gate that has no buckets and is not paused, nobody in line anywhere near.
        """
        only, root = tenant.shape.only, self.root
        if only is None or gate.zeros or gate.paused_until > now:
            return False
        if tenant.free <= 0 or gate.free <= 0 or root.free <= 0:
            return False
        zeros, at = tenant.zeros, only.p * now
        exact = zeros[0] + only.unit
        if exact > at or entry.session is not None or entry.holder is not None:
            return False
        floor = (at if exact <= at - only.p else exact) - only.capacity + only.unit
        zeros[0] = exact if exact > floor else floor
        tenant.free -= 1
        gate.free -= 1
        root.free -= 1
        self.granted += 1
        self.sequence = entry.sequence = self.sequence + 1
        entry.key = 0
        entry.arrival = entry.promised = entry.slot = now
        entry.state = State.RUNNING
        return True

    def _startable(self, entry: Entry, now: int) -> bool:
        """Whether a job can start at once: nothing stands in front of it, and all it needs is there."""
        tenant, gate = entry.tenant, entry.gate
        if not tenant.affords(tenant.shape.amounts(entry.cost), now):
            return False
        if entry.holder is None:
            if not (tenant.has_slot and gate.has_slot and self.root.has_slot):
                return False
            if entry.session is not None and (tenant.name, entry.session) in self.sessions:
                return False
        if gate.paused_until > now or not gate.affords(gate.shape.amounts(entry.cost), now):
            return False
        if not gate.lines:
            return True  # nobody has a line here, so nobody stands in front
        line = tenant.lines.get(gate.name)
        head = None if line is None else line.head(tenant.has_slot or entry.holder is not None)
        if head is not None and head.key < entry.key:
            return False
        turn = gate.turn(gate.has_slot and self.root.has_slot)
        return turn is None or (gate.fair.start(tenant.name), entry.key) < turn[:2]

    def _wait(self, entry: Entry, now: int) -> Refusal | None:
        """Judge a job that cannot start at once, and put it in line if it may wait."""
        tenant, gate, policy = entry.tenant, entry.gate, entry.policy
        outlook, zeros = self._outlook(entry, now)
        # A continuation is bounded by the runs that hold a slot, not by the length of the line.
        room = policy.max_queue if entry.holder is None else self.max_waiting
        reason = decide(outlook, now, policy.max_wait_ns, room, entry.deadline)
        if reason is None and self.waiting >= self.max_waiting:
            reason = Reason.MAX_WAITING
        if reason is not None:
            refusal = refuse(entry, now, zeros, outlook, reason, self.root)
            if tenant.placed is None:
                self._fade(tenant, now)
            return self._refused(entry, refusal)
        line = self._line(tenant, gate)
        entry.state, entry.promised = State.WAITING, outlook.promised
        self.waiting += 1
        if entry.deadline is not None:
            self.events.put((entry.deadline, EXPIRE, entry.key, entry))
        bound = policy.max_wait_ns
        if bound is not None and (line.tightest is None or bound < line.tightest):
            line.tightest = bound
        if not self._join_session(line, entry):
            self._join_line(line, entry, now)
        return None

    def _join_line(self, line: Line, entry: Entry, now: int) -> None:
        """Let a new job into its line: behind everybody, or by its key before some, who hear of it."""
        cause = None
        if entry.holder is not None:
            cause = Cause.CONTINUATION
        elif not line.is_last(entry.key):
            cause = Cause.PRIORITY
        if line.tail is not None and cause is None:
            line.tail.start(entry.tenant.shape.amounts(entry.cost))
        self._enter(line, entry)
        front = line.front
        if front is None or entry.key < front.key or entry.holder is not None:
            self._place(line, now)
            self._flush(now, now)
        if cause is not None:
            self._worsen(line, cause, now)
            self._judge(line, now)

    def _refused(self, entry: Entry, refusal: Refusal) -> Refusal:
        entry.state = State.REFUSED
        entry.refusal = refusal
        return refusal

    # --- quotes -------------------------------------------------------------------------------------

    def quote(self, now: int, tenant_name: str, gate_name: str, entry: Entry) -> Outlook:
        """What `entry` could look forward to if it were offered now. Leaves no trace."""
        self._advance(now)
        known = self.tenants.get(tenant_name)
        entry.tenant = known or Tenant(tenant_name, shape_of(self.quota_of(tenant_name)), now)
        entry.gate = self.gates[gate_name]
        entry.place_in_order(now, self.sequence + 1)
        if self._startable(entry, now):
            return Outlook(0, now, now, Reason.STRICT)
        return self._outlook(entry, now)[0]

    def _outlook(self, entry: Entry, now: int) -> tuple[Outlook, list[int]]:
        tenant = entry.tenant
        line = tenant.lines.get(entry.gate.name) if tenant.lines else None
        if line is None or (line.is_last(entry.key) and entry.holder is None):
            position = 0 if line is None else line.size + len(line.continuations or ())
            zeros, time = line_end(tenant, line, now)
        else:
            position = line.ahead(entry.key)
            zeros, time = line_part(tenant, line, entry.key, now)
        start = own_start(tenant.shape.scales, zeros, tenant.shape.amounts(entry.cost), time)
        return expect(entry, now, start, self.root, position, self.waiting), zeros

    def expected(self, now: int, entry: Entry) -> Outlook:
        """The present outlook of a waiting job; of any other, where it is."""
        self._advance(now)
        if entry.state is not State.WAITING:
            return Outlook(0, entry.slot, entry.slot, Reason.STRICT)
        outlook, _ = self._outlook(entry, now)
        return outlook

    def delayed_by(self, entry: Entry) -> frozenset[Cause]:
        """The named causes that may have made the job later than promised; empty while it is not late."""
        if entry.state is State.WAITING:
            return self._causes(entry)
        return entry.delayed

    # --- after the grant ----------------------------------------------------------------------------

    def settle(self, now: int, entry: Entry, usage: Usage | None = None) -> None:
        """End a grant: real usage replaces the estimate (None: the estimate was right), the slot is freed."""
        events = self.events.items
        if events and events[0][0] <= now:
            self._advance(now)
        if entry.state is not State.RUNNING:
            return
        if usage is not None:
            self._correct(entry, usage, now)
        if self.waiting or entry.holder is not None or entry.session is not None:
            self._end(entry, State.ENDED, now)
            return
        # Nobody waits: the same as `_end`, without looking for whom to let go.
        entry.state = State.ENDED
        tenant, held = entry.tenant, now - entry.slot
        tenant.release(held)
        entry.gate.release(held)
        self.root.release(held)
        if tenant.placed is None:
            self._fade(tenant, now)

    def withdraw(self, now: int, entry: Entry) -> None:
        """Undo a job that did not begin: cancel, timeout, disconnect, veto, before the grant or just after.

        What it held is given back exactly, and those behind it move up at this instant.
        """
        self._advance(now)
        if entry.state is State.WAITING:
            self._end_waiting(entry, State.ENDED, now)
            self._flush(now, now)
        elif entry.state is State.RUNNING:
            self._correct(entry, NOTHING, now)
            self._end(entry, State.ENDED, now)

    def retry(self, now: int, entry: Entry, not_before: int, refused: bool) -> Refusal | None:
        """Put a running job back in its line, by its key, once `not_before` has come.

        `refused`: the upstream did no work, so the tenant's permits stay paid and fairness is given back;
        otherwise the next grant charges everything again. A wait that its policy or deadline does not allow
        ends the job instead, and the refusal says why.
        """
        self._advance(now)
        gate, tenant = entry.gate, entry.tenant
        if refused:
            step = weighted(fair_cost(gate.shape, gate.shape.amounts(entry.cost)), tenant.shape.weight)
            gate.fair.correct(tenant.name, -step)
        entry.paid = refused
        start = max(not_before, gate.paused_until, now)
        bound, deadline = entry.policy.max_wait_ns, entry.deadline
        reason = Reason.PAUSE if gate.paused_until >= start > now else Reason.MAX_WAIT
        if deadline is not None and start >= deadline:
            reason, bound = Reason.DEADLINE, 0
        if bound is not None and start - now > bound:
            self._end(entry, State.REFUSED, now)
            return self._refused(entry, Refusal(reason, max(1, start - now)))
        self._release(entry, now)
        self._line(tenant, gate).outside += 1
        entry.state, entry.outside = State.WAITING, True
        self.waiting += 1
        self.events.put((start, RETURN, entry.fix_key(), entry))
        self._flush(now, now)
        self._advance(now)
        return None

    def _correct(self, entry: Entry, usage: Usage, now: int) -> None:
        """Replace what was charged by what was used, in every bucket and in the fairness account."""
        tenant, gate = entry.tenant, entry.gate
        above = False
        for account in (tenant, gate):
            if account.zeros:
                real, charged = account.shape.amounts(usage), account.shape.amounts(entry.cost)
                account.give_back(tuple(c - r for c, r in zip(charged, real, strict=True)))
                above = above or any(r > c for c, r in zip(charged, real, strict=True))
        difference = self._step(entry, usage) - self._step(entry, entry.cost)
        gate.fair.correct(tenant.name, difference)
        for line in tenant.lines.values():
            line.tail = None
            if above:
                self._worsen(line, Cause.USAGE_ABOVE_ESTIMATE, now)
        self._place_all(tenant, now)
        self.touched[gate] = None
        if above:
            for line in list(tenant.lines.values()):
                self._judge(line, now)

    def _step(self, entry: Entry, cost: Cost) -> int:
        if cost is NOTHING:
            return 0
        gate = entry.gate
        return weighted(fair_cost(gate.shape, gate.shape.amounts(cost)), entry.tenant.shape.weight)

    def _end(self, entry: Entry, state: State, now: int) -> None:
        """The job is over: slots free, its session's next job in, the tenant perhaps idle."""
        entry.state = state
        if entry.holder is None:
            self._release(entry, now)
            if entry.session is not None:
                self._leave_session(entry, now, outside=False)
        if self.touched:
            self._flush(now, now)
        tenant = entry.tenant
        if tenant.placed is None and not tenant.lines:
            self._fade(tenant, now)
