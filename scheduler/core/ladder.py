"""The ladder: service degrades in declared steps. What a job can look forward to decides how far.

A rung is looked at when a job would have to wait, and again whenever it has waited for as long as a rung
says, or its gate is paused or closed. It is taken if the predicted wait, from submit to the start that is
expected now, has reached its `after`, and if it makes that start earlier or the cost smaller; so a job goes
only as far down as it must. Once a tenant has taken a rung at a gate, those that follow take it from three
quarters of its `after` on, until the predicted wait has fallen below that: otherwise every other job would
get another model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from scheduler.core.account import Projection
from scheduler.core.entry import NEW, RUNNING, WAITING, Alarm, Entry
from scheduler.core.following import NEVER, Following
from scheduler.core.gate import Gate
from scheduler.core.outlook import Ahead, expect, run_to, since
from scheduler.core.policy import Cause, Outlook, Rung
from scheduler.core.quota import LONGEST, NS, Cost
from scheduler.core.register import EXPIRE, LADDER
from scheduler.core.signals import News, What


class Plan(NamedTuple):
    """How a job would be served, and the nanosecond at which it would start."""

    gate: Gate
    cost: Cost
    model: str | None
    max_tokens: int | None
    deferred: bool
    expected: int


def look_at(entry: Entry, now: int) -> int | None:
    """When to look at a waiting job again: when it has waited for as long as the next rung says.

    What is left after that was of no help so far; it is asked again after half as long again each time. None
    if there is none left.
    """
    rungs, begin = entry.policy.ladder[entry.rung :], since(entry)
    if not rungs:
        return None
    due = [begin + rung.after_ns for rung in rungs if begin + rung.after_ns > now]
    return min(due) if due else now + max(NS, (now - begin) // 2)


class Ladder(Following):
    """What jobs can look forward to, and the steps by which their service degrades.

    `max_deferred`: how many jobs may be deferred at a time; 0 where nobody takes them.
    """

    max_deferred = 0

    def _degrade(self, entry: Entry, now: int) -> bool:
        """Take the rungs whose time has come and that help. True if the job goes another way now."""
        if entry.outside or entry.holder is not None:
            return False
        plan = Plan(entry.shared, entry.cost, entry.model, entry.max_tokens, False, 0)
        plan = plan._replace(expected=self._foresee(entry, plan, now))
        taken, predicted = entry.rung, 0
        self._ease(entry, plan.expected)
        for index in range(entry.rung, len(entry.policy.ladder)):
            rung, wait = entry.policy.ladder[index], plan.expected - since(entry)
            if plan.deferred or wait < self._threshold(entry, rung):
                break
            better = self._better(entry, plan, rung, now)
            if better is not None:
                plan, taken, predicted = better, index + 1, min(wait, LONGEST)
        if taken == entry.rung:
            return False
        return self._take(entry, plan, taken, predicted, now)

    def _take(self, entry: Entry, plan: Plan, taken: int, predicted: int, now: int) -> bool:
        dark = entry.policy.dark
        what = What.WOULD if dark else What.RUNG
        self.news.append(
            News(entry.shared.name, what, now, predicted / NS, None, entry.owner.name, taken - 1)
        )
        entry.rung, entry.predicted = taken, predicted
        if dark:
            return False
        steps = entry.owner.steps = entry.owner.steps or {}
        steps[entry.shared.name] = entry.policy.ladder[taken - 1].after_ns
        entry.model, entry.max_tokens = plan.model, plan.max_tokens
        if plan.deferred:
            self._defer(entry, now)
        elif entry.state is NEW:
            self._go_to(entry, plan)
        else:
            self._move(entry, plan, now)
        return True

    def _better(self, entry: Entry, plan: Plan, rung: Rung, now: int) -> Plan | None:
        """The plan with one more rung, if that makes the start earlier or the cost smaller."""
        if rung.defer is not None:
            free = self.deferred < self.max_deferred and plan.expected > now
            free = free and not self._session_ahead(entry)
            return plan._replace(deferred=True, expected=now) if free else None
        name = rung.gate or rung.model
        gate = plan.gate if name is None else self.gates.get(name, plan.gate)
        cost, most = plan.cost, rung.max_tokens
        smaller = most is not None and not 0 < cost.output_tokens <= most
        if most is not None and smaller and cost.output_tokens and not entry.paid:
            cost = replace(cost, output_tokens=most)
        if plan.max_tokens is not None and most is not None:
            most = min(most, plan.max_tokens)
        new = Plan(gate, cost, rung.model or plan.model, most or plan.max_tokens, False, 0)
        if gate.closed_until is not None or (gate is not plan.gate and self._is_full(entry, gate)):
            return None
        if entry.owner.shape.never(cost) or gate.shape.never(cost):
            return None
        new = new._replace(expected=self._foresee(entry, new, now))
        return new if new.expected < plan.expected or smaller else None

    def _is_full(self, entry: Entry, gate: Gate) -> bool:
        """Whether its tenant's line at a gate is as long as its policy allows."""
        line = entry.owner.lines.get(gate.name)
        return line is not None and line.length >= entry.policy.max_queue

    def _foresee(self, entry: Entry, plan: Plan, now: int) -> int:
        """When the job would start if it were served by a plan; about so, if it is in the midst of a line."""
        before = entry.shared, entry.cost
        entry.shared, entry.cost = plan.gate, plan.cost
        try:
            if entry.owner.shape.never(plan.cost) or plan.gate.shape.never(plan.cost):
                return NEVER
            if entry.state is WAITING:
                return max(now, self._roughly(entry, now))
            if self._startable(entry, now):
                return now
            return max(now, self._outlook(entry, now)[0].expected)
        finally:
            entry.shared, entry.cost = before

    def _roughly(self, entry: Entry, now: int) -> int:
        """When a waiting job is expected to start, without a walk along the line: by the mean of its work."""
        tenant, lines = entry.owner, entry.owner.lines.values()
        before = [(line, min(line.size, line.ahead(entry.key))) for line in lines if line.size]
        starts = []
        for begin in (now, max(now, entry.shared.opens)):
            latest = begin
            for index, (scale, zero) in enumerate(zip(tenant.shape.scales, tenant.zeros, strict=True)):
                work = sum(line.work[index] * ahead // line.size for line, ahead in before)
                if not entry.paid:
                    work += tenant.shape.amounts(entry.cost)[index]
                latest = max(latest, scale.ready(max(zero, scale.full(begin)), work))
            starts.append(latest)
        own = tenant.lines.get(entry.shared.name)
        position = 0 if own is None else own.ahead(entry.key)
        ahead = Ahead(position, self.waiting, self._session_ahead(entry))
        return expect(entry, now, starts[0], starts[1], self.root, ahead).expected

    def _threshold(self, entry: Entry, rung: Rung) -> int:
        """The predicted wait from which a rung is taken: less for a tenant that takes it already."""
        level = (entry.owner.steps or {}).get(entry.shared.name, 0)
        return rung.after_ns * 3 // 4 if 0 < rung.after_ns <= level else rung.after_ns

    def _ease(self, entry: Entry, expected: int) -> None:
        """Forget which rung the tenant took here, once a wait is clearly shorter than that."""
        steps, name = entry.owner.steps, entry.shared.name
        if steps and expected - since(entry) < steps.get(name, 0) * 3 // 4:
            del steps[name]

    # --- going another way --------------------------------------------------------------------------

    def _go_to(self, entry: Entry, plan: Plan) -> None:
        entry.shared, entry.cost, entry.gate = plan.gate, plan.cost, plan.gate.name

    def _take_out(self, entry: Entry, now: int) -> None:
        """Take a waiting job out of its line, without an end to it."""
        line = entry.owner.lines[entry.shared.name]
        self._leave(line, entry)
        entry.owner.forget_tails()
        self._close_ranks(line, entry, now)

    def _move(self, entry: Entry, plan: Plan, now: int) -> None:
        """Let a waiting job go on by another plan, with the place that its key gives it.

        Nobody need be judged anew: a tenant's permits go to its jobs by their keys, at whatever gate.
        """
        self._take_out(entry, now)
        self._go_to(entry, plan)
        self.waiting += 1
        if entry.expires is not None:
            self.events.put((entry.expires, EXPIRE, entry.key, entry))
        line = self._line(entry.owner, entry.shared)
        line.tighten(entry.policy.max_wait_ns)
        self._worsen(entry.owner, Cause.GATE, now)
        self._enter(line, entry, now)
        self._place(line, now)

    def _defer(self, entry: Entry, now: int) -> None:
        """Let a job out of the line for good: it is served without permits and slots, whenever that is."""
        if entry.state is WAITING:
            self._take_out(entry, now)
            self.moved.append(entry)
            if entry.paid:
                self._refund(entry, now)
        else:
            entry.promised = now
            if entry.session is not None:
                self.sessions[entry.owner.name, entry.session] = []
        entry.deferred, entry.state, entry.slot = True, RUNNING, now
        self.deferred += 1
        self.granted += 1

    def _watch(self, entry: Entry, now: int) -> None:
        """Have a waiting job looked at again."""
        time = look_at(entry, now)
        if time is None:
            return
        entry.alarm = Alarm(entry)
        self.sequence += 1
        self.events.put((time, LADDER, self.sequence, entry.alarm))

    # --- looking ahead ------------------------------------------------------------------------------

    def _startable(self, entry: Entry, now: int) -> bool:
        """Whether a job can start at once: nothing stands in front of it, and all it needs is there."""
        tenant, gate = entry.owner, entry.shared
        if not tenant.affords(tenant.shape.amounts(entry.cost), now):
            return False
        if gate.paused_until > now or (gate.zeros and not gate.affords(gate.shape.amounts(entry.cost), now)):
            return False
        slot = tenant.free > 0 and gate.free > 0 and self.root.free > 0
        if entry.holder is None and (not slot or (entry.session is not None and self._session_ahead(entry))):
            return False
        if entry.expires is not None and entry.expires <= now:
            return False
        return (not tenant.lines and not gate.lines) or self._in_front(entry, slot)

    def _in_front(self, entry: Entry, slot: bool) -> bool:
        """Whether nobody who waits goes before a job that has all it needs: what `_serve` would find."""
        tenant, gate = entry.owner, entry.shared
        for line in tenant.lines.values():
            if line.gate is gate:
                first = line.head(slot)
            else:
                first = line.front if line.placed is not None and line.agenda is self.events else None
            if first is not None and first.key < entry.key:
                return False
        turn = gate.turn(gate.free > 0 and self.root.free > 0)
        return turn is None or (gate.fair.start(tenant.name), entry.key) < turn[:2]

    def _outlook(self, entry: Entry, now: int) -> tuple[Outlook, Projection]:
        """What a job that has to wait can look forward to, and its tenant's buckets behind all before it."""
        tenant, gate = entry.owner, entry.shared
        line = tenant.lines.get(gate.name)
        position = 0 if line is None else line.ahead(entry.key)
        if line is not None and entry.state is NEW and entry.holder is None and not entry.head_start:
            position += line.outside  # who came before it and returns to the line goes before it
        amounts = tenant.shape.nothing if entry.paid else tenant.shape.amounts(entry.cost)
        run = run_to(tenant, entry.key, now, now)
        own = late = run.time if entry.paid else run.peek(amounts)
        if gate.opens > now:
            run = run_to(tenant, entry.key, gate.opens, now)
            late = run.time if entry.paid else run.peek(amounts)
        ahead = Ahead(position, self.waiting, self._session_ahead(entry))
        return expect(entry, now, own, late, self.root, ahead), run

    def _session_ahead(self, entry: Entry) -> int:
        """How many jobs of its session go before one that is not in its line, the running one included."""
        if entry.session is None or entry.holder is not None:
            return 0
        behind = self.sessions.get((entry.owner.name, entry.session))
        if behind is None or (entry.state is WAITING and entry not in behind):
            return 0
        return 1 + sum(other.key < entry.key for other in behind)
