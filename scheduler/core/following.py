"""A gate follows its upstream: pauses, limits that were named, fewer calls at once, and a gate that closes.

Every answer is heard, of whatever call. What a 429 names stops the gate and lets it go on at the refill rate;
a 529 takes slots away and answers that are accepted give them back; the limits in the headers become the
gate's own. The number of calls at once follows an increase of one for each accepted call and a decrease in
proportion for failed ones, after D.-M. Chiu and R. Jain, "Analysis of the Increase and Decrease Algorithms
for Congestion Avoidance in Computer Networks", Computer Networks and ISDN Systems 17, 1989. A failure alone
takes an eighth; those that follow it with none accepted between take half each, since an upstream that
accepts nothing needs no slow approach.
"""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.core.account import UNLIMITED, shape_of
from scheduler.core.entry import WAITING, Entry
from scheduler.core.gate import RAMP_FULL, SPREAD, Gate
from scheduler.core.limits import limits_of, named
from scheduler.core.line import Line
from scheduler.core.policy import Cause, Reason, Refusal
from scheduler.core.quota import DIMENSIONS, NS, nanoseconds
from scheduler.core.settling import Settling
from scheduler.core.signals import Answer, News, Signal, What

FLOOR = 1
"""Calls at once that a gate is never cut below."""

GENTLE = 8
"""A failure alone takes one slot, and one more for each of so many; no fewer are taken for what runs."""

BREATH = 2 * NS
"""Nanoseconds of pause, at most, after a failure with no slot left to take."""

RAMP_STEP = 5 * NS
"""Nanoseconds after which growth that was slowed down goes on by one part of the limits."""

MINUTE = 60 * NS

NEVER = 1 << 62
"""A time that does not come."""


class Following(Settling):
    """How gates follow their upstreams."""

    def hear(self, now: int, entry: Entry, signal: Signal) -> None:
        """Take note of an upstream's answer to the call of a grant."""
        self._advance(now)
        gate, answer = entry.shared, signal.answer
        if signal.limits:
            self._follow(gate, signal.limits, now)
        if signal.remaining:
            self._tighten(gate, signal.remaining, entry.slot, now)
        if answer is Answer.ACCEPTED:
            self._accepted(gate, entry, now)
        elif answer is Answer.SPEND_LIMIT:
            self._close(gate, entry, now)
        elif answer is Answer.OVERLOADED:
            self._shrink(gate, entry.slot, now)
            if signal.retry_after is not None:
                self._hold_up(gate, now + named(signal.retry_after), now)
        else:
            if answer is Answer.RAMP:
                self._slow_down(gate, entry.slot, now)
            self._limited(gate, entry, signal, now)
        self._flush(now, now)

    def resume(self, now: int, gate_name: str) -> None:
        """Open a gate that is closed or paused: an operator knows that it may go on."""
        self._advance(now)
        gate = self.gates[gate_name]
        if gate.closed_until is not None:
            self._open(gate, now)
        for index, scale in enumerate(gate.shape.scales):
            # What a pause emptied: from now on at the refill rate.
            gate.zeros[index] = min(gate.zeros[index], scale.p * now - scale.unit)
        if gate.cut:
            self._allow(gate, gate.shape.concurrency, now)
        gate.failures, gate.ramp = 0, RAMP_FULL
        self._reshape(gate, now)
        self.pause(now, gate_name, now)

    def pause(self, now: int, gate_name: str, until: int) -> None:
        """Let nobody pass a gate before `until`; a past time ends a pause, and a closed gate stays closed."""
        self._advance(now)
        gate = self.gates[gate_name]
        if gate.closed_until is not None:
            return
        if until > now or gate.paused_until > now:
            gate.late[Cause.PAUSE] = max(now, until)
        gate.paused_until = until
        self.touched[gate] = None
        self._flush(now, now)
        for tenant in list(self.tenants.values()):
            line = tenant.lines.get(gate_name)
            if line is not None:
                self._degrade_heads(line, now)
                self._judge(line, now)
        self._flush(now, now)

    def _degrade_heads(self, line: Line, now: int) -> None:
        """Let those at the front go another way, if they have a ladder: one by one, until one stays."""
        while (head := line.head(True)) is not None and self._step_aside(head, now):
            pass

    def _step_aside(self, entry: Entry, now: int) -> bool:
        return bool(entry.policy.ladder) and self._degrade(entry, now)

    # --- slots --------------------------------------------------------------------------------------

    def _accepted(self, gate: Gate, entry: Entry, now: int) -> None:
        gate.failures = 0
        if gate.closed_until is not None:
            if gate.probe is entry:
                self._open(gate, now)
            return
        if gate.cut:
            # Where there is no bound, twice as many as there were before it was short bind nobody.
            bound = gate.shape.concurrency
            bound = 2 * max(GENTLE, gate.cut_from) if bound >= UNLIMITED else bound
            most = min(bound, self.root.shape.concurrency)
            self._allow(gate, gate.shape.concurrency if gate.slots + 1 >= most else gate.slots + 1, now)
        if gate.ramp < RAMP_FULL and now - gate.ramped_at >= RAMP_STEP:
            gate.ramp, gate.ramped_at = gate.ramp + 1, now
            self._reshape(gate, now)

    def _shrink(self, gate: Gate, since: int, now: int) -> None:
        """Take slots away: the upstream is short. A call from before the last time takes only its own."""
        gate.failures += 1
        if not gate.cut:
            gate.cut_from = gate.running
        slots = min(gate.slots, max(GENTLE, gate.running))
        if since < gate.cut_at:
            fewer = slots - 1
        elif gate.failures > 1:
            fewer = slots // 2
        else:
            fewer = slots - 1 - (slots - 1) // GENTLE
        gate.cut_at = now
        if slots > FLOOR:
            self._allow(gate, max(FLOOR, fewer), now)
        else:
            # A slot whose calls fail at once would ask without end: it rests for twice the time of a call.
            self._hold_up(gate, now + min(2 * gate.hold, BREATH), now)

    def _allow(self, gate: Gate, slots: int, now: int) -> None:
        """Let so many calls run at once from now on."""
        more = slots - gate.slots
        gate.cut -= more
        gate.free += more
        gate.late[Cause.SLOT] = now
        self.touched[gate] = None
        if self.runs:
            self._slots_changed(now)
        self.news.append(News(gate.name, What.SLOTS, now, slots))

    # --- limits -------------------------------------------------------------------------------------

    def _follow(self, gate: Gate, limits: Mapping[str, int], now: int) -> None:
        """Let the limits that the upstream names be the gate's, up to the ceiling."""
        quota = gate.upstream.quota
        new = {
            name: limit
            for name, limit in limits.items()
            if limit > 0 and getattr(quota, name) is not None and gate.told.get(name) != limit
        }
        if new:
            gate.told.update(new)
            self._reshape(gate, now)

    def _reshape(self, gate: Gate, now: int) -> None:
        """Give a gate the limits that hold now; who can never fit them any more is refused."""
        before, shape = gate.shape.quota, shape_of(limits_of(gate))
        if shape is gate.shape:
            return
        gate.reshape(shape, now)
        for name in DIMENSIONS:
            rate = getattr(shape.quota, name)
            if rate != getattr(before, name):
                self.news.append(News(gate.name, What.LIMIT, now, float(rate.per_second * 60), name))
        waiting = [entry for entry in self.everyone() if entry.shared is gate]
        gate.backlog = [0] * len(shape.scales)
        for entry in waiting:
            if not entry.outside:
                self._count_backlog(entry, 1)
        gate.delay(Cause.LIMIT_LOWERED, now)
        self.touched[gate] = None
        for entry in waiting:
            never = shape.never(entry.cost)
            if never is not None and entry.state is WAITING and not self._step_aside(entry, now):
                self._drop(entry, Refusal(Reason.NEVER, 0, never), now)

    def _tighten(self, gate: Gate, remaining: Mapping[str, int], since: int, now: int) -> None:
        """Lower buckets that hold clearly more than the upstream had left when the call began.

        What was refilled since is granted, and a part of a minute's limit is let pass: headers are rounded,
        they do not know what is on its way, and a bucket that was lowered is not raised again.
        """
        shape = gate.shape
        for index, (dimension, scale) in enumerate(zip(shape.limits, shape.scales, strict=True)):
            left = remaining.get(DIMENSIONS[dimension])
            if left is None:
                continue
            there = max(0, left) * scale.unit + scale.p * (now - since)
            slack = min(scale.p * MINUTE >> 4, scale.capacity >> 2)
            if scale.level(gate.zeros[index], now) > there + slack:
                gate.zeros[index] = scale.p * now - there
                self.touched[gate] = None
                self.news.append(
                    News(gate.name, What.TIGHTENED, now, there / scale.unit, DIMENSIONS[dimension])
                )

    def _limited(self, gate: Gate, entry: Entry, signal: Signal, now: int) -> None:
        """Let nobody pass until the time that was named, and go on at the refill rate, not in a crowd."""
        until = now + named(signal.retry_after or 0.0)
        if gate.closed_until is not None:
            if gate.probe is entry:
                gate.probe, gate.closed_until = None, until
            return
        if not gate.shape.scales:
            self._shrink(gate, entry.slot, now)
        if signal.retry_after is None:
            return
        for index, (amount, scale) in enumerate(
            zip(gate.shape.amounts(entry.cost), gate.shape.scales, strict=True)
        ):
            gate.zeros[index] = max(gate.zeros[index], scale.p * until - max(amount, scale.unit))
        self._hold_up(gate, until, now)

    def _hold_up(self, gate: Gate, until: int, now: int) -> None:
        """Pause a gate; a pause is never made shorter by an answer."""
        before = max(now, gate.paused_until)
        if gate.closed_until is not None or until <= before:
            return
        if until - before < SPREAD:
            # Another one of the calls that were under way: nobody need be judged anew for that.
            gate.paused_until = until
            gate.delay(Cause.PAUSE, until)
            self.touched[gate] = None
        else:
            self.pause(now, gate.name, until)
            self.news.append(News(gate.name, What.PAUSED, now, (until - now) / NS))

    def _slow_down(self, gate: Gate, since: int, now: int) -> None:
        """Use a quarter less than so far; calls that had begun before the last time do not count again."""
        if since >= gate.ramped_at or gate.ramp == RAMP_FULL:
            gate.ramp, gate.ramped_at = max(1, gate.ramp * 3 // 4), now
            self._reshape(gate, now)

    # --- closed -------------------------------------------------------------------------------------

    def _close(self, gate: Gate, entry: Entry, now: int) -> None:
        """Refuse all who wait at a gate, and let nobody pass but one probe at times."""
        probe = nanoseconds("spend_probe", gate.upstream.spend_probe)
        if gate.closed_until is None:
            self.news.append(News(gate.name, What.CLOSED, now, probe / NS))
        if gate.closed_until is None or gate.probe is entry:
            gate.closed_until, gate.probe = now + probe, None
        gate.paused_until = NEVER
        for other in [e for e in self.everyone() if e.shared is gate]:
            if other.state is WAITING and not self._step_aside(other, now):
                wait = gate.wait_of_refused(gate.opens, now)
                self._drop(other, Refusal(Reason.SPEND_LIMIT, wait), now)
        self.touched[gate] = None

    def _open(self, gate: Gate, now: int) -> None:
        gate.closed_until = gate.probe = None
        gate.paused_until = now
        gate.late[Cause.PAUSE] = now
        self.touched[gate] = None
        self.news.append(News(gate.name, What.OPENED, now))
