"""A gate follows its upstream: pauses, limits that were named, fewer calls at once, and a gate that closes.

Every answer is heard, of whatever call. What a 429 names stops the gate and lets it go on at the refill rate;
a 529 takes slots away and answers that are accepted give them back; the limits in the headers become the
gate's own. The number of calls at once follows an increase of one for each accepted call and a decrease in
proportion for failed ones, after D.-M. Chiu and R. Jain, "Analysis of the Increase and Decrease Algorithms
for Congestion Avoidance in Computer Networks", Computer Networks and ISDN Systems 17, 1989. A failure alone
takes a tenth; those that follow it with none accepted between take half each, since an upstream that accepts
nothing needs no slow approach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from scheduler.core.account import shape_of
from scheduler.core.entry import WAITING, Entry
from scheduler.core.gate import RAMP_FULL, Gate
from scheduler.core.line import Line
from scheduler.core.policy import Cause, Reason, Refusal
from scheduler.core.quota import DIMENSIONS, NS, Quota, Rate, full_burst, nanoseconds
from scheduler.core.settling import Settling
from scheduler.core.signals import Answer, News, Signal, What

FLOOR = 1
"""Calls at once that a gate is never cut below."""

GENTLE = 8
"""Slots up to which a failure alone takes one, and above which it takes a tenth."""

BREATH = 2 * NS
"""Nanoseconds of pause, at most, after a failure with no slot left to take."""

RAMP_STEP = 5 * NS
"""Nanoseconds after which growth that was slowed down goes on by one part of the limits."""

SPREAD = 1_000_000
"""Nanoseconds between those that are refused together, so that they do not come back together."""

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
            self._close(gate, now)
        elif answer is Answer.OVERLOADED:
            self._shrink(gate, now)
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
        while (head := line.head(True)) is not None and self._degrade(head, now):
            pass

    # --- slots --------------------------------------------------------------------------------------

    def _accepted(self, gate: Gate, entry: Entry, now: int) -> None:
        gate.failures = 0
        if gate.closed_until is not None:
            if gate.probe is entry:
                self._open(gate, now)
            return
        if gate.cut:
            most = min(gate.shape.concurrency, self.root.shape.concurrency)
            self._allow(gate, gate.shape.concurrency if gate.slots + 1 >= most else gate.slots + 1, now)
        if gate.ramp < RAMP_FULL and now - gate.ramped_at >= RAMP_STEP:
            gate.ramp, gate.ramped_at = gate.ramp + 1, now
            self._reshape(gate, now)

    def _shrink(self, gate: Gate, now: int) -> None:
        """Take slots away: the upstream is short."""
        gate.failures += 1
        slots = min(gate.slots, self.root.shape.concurrency)
        fewer = slots // 2 if gate.failures > 1 else slots - 1 - (slots - 1) // GENTLE
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
        lines = [t.lines[gate.name] for t in self.tenants.values() if gate.name in t.lines]
        gate.backlog = [0] * len(shape.scales)
        for line in lines:
            for entry in line:
                self._count_backlog(entry, 1)
        gate.delay(Cause.LIMIT_LOWERED, now)
        self.touched[gate] = None
        for line in lines:
            for entry in [*line, *self._behind(line.tenant.name, gate)]:
                never = shape.never(entry.cost)
                if never is not None:
                    self._drop(entry, Refusal(Reason.NEVER, 0, never), now)

    def _behind(self, tenant: str, gate: Gate) -> list[Entry]:
        """A tenant's jobs for a gate that stand behind others of their sessions."""
        parked = [e for (owner, _), behind in self.sessions.items() if owner == tenant for e in behind]
        return [entry for entry in parked if entry.shared is gate]

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
        if gate.closed_until is not None:
            return
        if not gate.shape.scales:
            self._shrink(gate, now)
        if signal.retry_after is None:
            return
        until = now + nanoseconds("retry_after", signal.retry_after)
        for index, (amount, scale) in enumerate(
            zip(gate.shape.amounts(entry.cost), gate.shape.scales, strict=True)
        ):
            gate.zeros[index] = max(gate.zeros[index], scale.p * until - max(amount, scale.unit))
        self._hold_up(gate, until, now)

    def _hold_up(self, gate: Gate, until: int, now: int) -> None:
        """Pause a gate; a pause is never made shorter by an answer."""
        if gate.closed_until is None and until > max(now, gate.paused_until):
            self.pause(now, gate.name, until)
            self.news.append(News(gate.name, What.PAUSED, now, (until - now) / NS))

    def _slow_down(self, gate: Gate, since: int, now: int) -> None:
        """Use a quarter less than so far; calls that had begun before the last time do not count again."""
        if since >= gate.ramped_at or gate.ramp == RAMP_FULL:
            gate.ramp, gate.ramped_at = max(1, gate.ramp * 3 // 4), now
            self._reshape(gate, now)

    # --- closed -------------------------------------------------------------------------------------

    def _close(self, gate: Gate, now: int) -> None:
        """Refuse all who wait at a gate, and let nobody pass but one probe at times."""
        probe = nanoseconds("spend_probe", gate.upstream.spend_probe)
        if gate.closed_until is None:
            self.news.append(News(gate.name, What.CLOSED, now, probe / NS))
            gate.closed_until = now + probe
        gate.paused_until = NEVER
        for count, entry in enumerate([e for e in self.everyone() if e.shared is gate], start=1):
            if entry.state is WAITING and not self._degrade(entry, now):
                wait = max(0, gate.closed_until - now) + count * SPREAD
                self._drop(entry, Refusal(Reason.SPEND_LIMIT, wait), now)
        self.touched[gate] = None

    def _open(self, gate: Gate, now: int) -> None:
        gate.closed_until = gate.probe = None
        gate.paused_until = now
        gate.late[Cause.PAUSE] = now
        self.touched[gate] = None
        self.news.append(News(gate.name, What.OPENED, now))


def limits_of(gate: Gate) -> Quota:
    """The limits that hold now: those of the upstream where it named any, by its ramp, under the ceiling."""
    given, ceiling = gate.upstream.quota, gate.upstream.ceiling
    rates: dict[str, Any] = {}
    for name in DIMENSIONS:
        rate, bound = getattr(given, name), getattr(ceiling, name, None)
        if rate is None:
            continue
        per_second = Fraction(gate.told[name], 60) if name in gate.told else rate.per_second
        if bound is not None:
            per_second = min(per_second, bound.per_second)
        if per_second != rate.per_second or gate.ramp < RAMP_FULL:
            rates[name] = _rescaled(name, rate, per_second, Fraction(gate.ramp, RAMP_FULL))
    return replace(given, **rates) if rates else given


def _rescaled(name: str, rate: Rate, per_second: Fraction, ramp: Fraction) -> Rate:
    """A rate of so much per second, in whole permits per minute and at least one.

    The burst is at most a minute's permits, which is what the upstream would save up. Slower growth leaves
    it as it is: it must not make a job too large for ever.
    """
    minute = max(1, int(per_second * 60))
    burst = full_burst(name, rate)
    burst = minute if rate.burst is None and name != "requests" else min(burst, minute)
    try:
        return Rate.per_minute(max(1, int(minute * ramp)), burst=burst)
    except ValueError:  # a number that no bucket can keep exactly
        return rate
