"""After the grant: settle, withdraw, retry. What was charged gives way to what was used."""

from __future__ import annotations

from scheduler.core.changes import Changes
from scheduler.core.entry import ENDED, REFUSED, RUNNING, WAITING, Entry, State
from scheduler.core.fairness import fair_cost, weighted
from scheduler.core.policy import Cause, Reason, Refusal
from scheduler.core.quota import NOTHING, Cost, Usage
from scheduler.core.register import RETURN


class Settling(Changes):
    """How jobs end, or go back to their line."""

    def settle(self, now: int, entry: Entry, usage: Usage | None = None) -> None:
        """End a grant: real usage replaces the estimate (None: the estimate was right), the slot is freed."""
        events = self.events.items
        if events and events[0][0] <= now:
            self._advance(now)
        if entry.state is not RUNNING:
            return
        if usage is not None and not entry.deferred:
            self._correct(entry, usage, now)
        self._end(entry, ENDED, now)

    def finish(self, entry: Entry) -> bool:
        """End a plain grant whose estimate was right while all who wait would find a slot without its own.

        The time does not matter then. False, and nothing done, if that is not the case, or if the grant's
        holding time should be measured (one in 64 is); then `settle` it.
        """
        tenant, gate, root = entry.owner, entry.shared, self.root
        if not entry.plain or not entry.sequence & 63 or (tenant.placed is None and not tenant.lines):
            return False
        waiting = self.waiting
        if (
            entry.state is not RUNNING
            or tenant.free <= waiting
            or gate.free <= waiting
            or root.free <= waiting
            or gate.probe is entry
        ):
            return False
        entry.state = ENDED
        tenant.free += 1
        gate.free += 1
        root.free += 1
        return True

    def withdraw(self, now: int, entry: Entry) -> None:
        """Undo a job that did not begin: cancel, timeout, disconnect, veto, before the grant or just after.

        What it held is given back exactly, and those behind it move up at this instant.
        """
        self._advance(now)
        if entry.state is WAITING:
            self._end_waiting(entry, ENDED, now)
            self._flush(now, now)
        elif entry.state is RUNNING:
            if not entry.deferred:
                self._correct(entry, NOTHING, now)
            self._end(entry, ENDED, now)

    def grow(self, now: int, entry: Entry, output_tokens: int) -> None:
        """Charge a running call for output beyond its estimate while it comes: what is settled is the same.

        Long answers are under way for longer than short ones, so what they have above their estimates is
        most of what the buckets would not know of.
        """
        if entry.state is not RUNNING or entry.deferred or output_tokens <= entry.cost.output_tokens:
            return
        if not entry.owner.shape.metered and not entry.shared.shape.metered:
            return
        self._advance(now)
        before = entry.cost
        usage = Usage(before.requests, before.input_tokens, output_tokens)
        self._correct(entry, usage, now)
        entry.reserved = entry.reserved or before
        entry.cost = Cost(usage.requests, usage.input_tokens, usage.output_tokens)
        self._flush(now, now)

    def retry(
        self, now: int, entry: Entry, not_before: int, refused: bool, usage: Usage | None = None
    ) -> Refusal | None:
        """Put a running job back in its line, by its key, once `not_before` has come.

        `refused`: the upstream did no work, so the tenant's permits stay paid and fairness is given back;
        otherwise `usage` replaces what this try was charged, and the next grant charges its cost again. A
        wait that its policy or deadline does not allow ends the job instead, and the refusal says why.
        """
        self._advance(now)
        self._charge_try(entry, entry.reserved if refused else usage, now)
        if entry.deferred:  # it held nothing by which its tenant would have been remembered
            entry.owner = self._tenant(entry.owner.name, now)
        gate, tenant = entry.shared, entry.owner
        if refused and entry.period:
            gate.fair.correct(tenant.name, -self._step(entry, entry.cost), entry.period)
        entry.paid, entry.period = refused and not entry.deferred, 0
        entry.plain = entry.plain and not refused
        start = max(not_before, gate.opens, now)
        bound, deadline = entry.policy.max_wait_ns, entry.expires
        reason = Reason.PAUSE if gate.opens >= start > now else Reason.MAX_WAIT
        shut, late = gate.closed_until is not None, deadline is not None and start >= deadline
        if shut:
            reason = Reason.SPEND_LIMIT
        elif late:
            reason = Reason.DEADLINE
        if shut or late or (bound is not None and start - now > bound):
            if entry.paid:
                self._refund(entry, now)
            self._end(entry, REFUSED, now)
            return self._refused(entry, Refusal(reason, gate.wait_of_refused(start, now)))
        line = self._line(tenant, gate)
        line.outside += 1
        line.tighten(bound)
        entry.state, entry.outside, entry.gate = WAITING, True, gate.name
        self.waiting += 1
        self.events.put((start, RETURN, entry.fix_key(), entry))
        if entry.deferred:
            entry.deferred = False
            self.deferred -= 1
        elif entry.holder is None:
            self._release(entry, now, learn=not refused)
        entry.slot = now
        self._place_all(tenant, now)
        self._advance(now)
        self._flush(now, now)
        return None

    def _charge_try(self, entry: Entry, used: Cost | None, now: int) -> None:
        """Charge a try what it used, if that is known; the next one reserves what this one did."""
        if used is not None and not entry.deferred:
            self._correct(entry, used, now)
        if entry.reserved is not None:
            entry.cost, entry.reserved = entry.reserved, None

    def _refused(self, entry: Entry, refusal: Refusal) -> Refusal:
        entry.state = REFUSED
        entry.refusal = refusal
        return refusal

    def _correct(self, entry: Entry, usage: Cost, now: int) -> None:
        """Replace what was charged by what was used, in every bucket and in the fairness account."""
        tenant, gate = entry.owner, entry.shared
        for account in (tenant, gate):
            if account.zeros:
                account.exchange(account.shape.amounts(entry.cost), account.shape.amounts(usage))
        if entry.period:
            difference = self._step(entry, usage) - self._step(entry, entry.cost)
            gate.fair.correct(tenant.name, difference, entry.period)
        if not self.waiting:
            return
        above = tenant.shape.exceeds(usage, entry.cost) or gate.shape.exceeds(usage, entry.cost)
        tenant.forget_tails()
        if above:
            self._worsen(tenant, Cause.USAGE_ABOVE_ESTIMATE, now)
        self._place_all(tenant, now)
        self.touched[gate] = None
        if above:
            self._judge_all(tenant, now)

    def _step(self, entry: Entry, cost: Cost) -> int:
        if cost == NOTHING:
            return 0  # a job costs something at any gate, but one that did not begin owes nothing
        gate = entry.shared
        return weighted(fair_cost(gate.shape, gate.shape.amounts(cost)), entry.owner.shape.weight)

    def _end(self, entry: Entry, state: State, now: int) -> None:
        """The job is over: slots free, its session's next job in, the tenant perhaps idle."""
        entry.state = state
        if entry.shared.probe is entry:
            # It ended without a word about the limit: the next one may ask.
            entry.shared.probe, entry.shared.closed_until = None, now
        if entry.holder is None:
            if entry.deferred:
                self.deferred -= 1
            else:
                self._release(entry, now)
            if entry.session is not None:
                self._leave_session(entry, now, outside=False)
        if self.touched:
            self._flush(now, now)
        tenant = entry.owner
        if tenant.placed is None and not tenant.lines:
            self._fade(tenant, now)
