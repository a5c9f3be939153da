"""A tenant: the owner of a quota and of lines, and the echo of those it had to refuse."""

from __future__ import annotations

from typing import Any

from scheduler.core.account import Account, Amounts, Projection, Shape
from scheduler.core.bucket import Scale
from scheduler.core.line import Line

GOLDEN = 2654435769
"""2^32 over the golden ratio: its multiples spread evenly in any range (Knuth, TAOCP 3, section 6.4)."""


class Tenant(Account):
    """The state of one tenant.

    `lines` by gate name, only while somebody waits. `echoes` by gate name too, None until somebody was
    refused. `override` marks a quota that was set by hand and must not be forgotten.
    """

    __slots__ = ("echoes", "lines", "name", "override", "placed", "steps")

    def __init__(self, name: str, shape: Shape, now: int) -> None:
        super().__init__(shape, now)
        self.name = name
        self.lines: dict[str, Line] = {}
        self.echoes: dict[str, Echo] | None = None
        self.override = False
        self.steps: dict[str, int] | None = None
        self.placed: tuple[Any, ...] | None = None

    def echo(self, gate_name: str, now: int) -> Echo:
        """The echo of those refused at a gate; a new one when all of them have passed."""
        if self.echoes is None:
            self.echoes = {}
        echo = self.echoes.get(gate_name)
        if echo is None or (echo.last <= now and echo.passed_at(self.shape.scales) <= now):
            echo = self.echoes[gate_name] = Echo(self.zeros, now)
        return echo

    def idle_at(self) -> int:
        """The first whole nanosecond at which every bucket is full and every echo has passed."""
        passed = [echo.passed_at(self.shape.scales) for echo in (self.echoes or {}).values()]
        return max(self.full_at(), *passed) if passed else self.full_at()

    def forget_tails(self) -> None:
        """Forget how the buckets would stand behind the lines: something came between."""
        for line in self.lines.values():
            line.tail = None


class Echo:
    """Refused callers as phantoms in line, in O(1).

    A phantom holds no permit and delays nobody; it only makes the next refusal's time later, so that callers
    refused one after another come back one after another. `zeros` and `time` are the tenant's buckets and the
    last start as they would be had the phantoms queued; they pass by themselves as time goes on. `last` is
    the time given last. `count` spreads the times inside the bound once it is reached.
    """

    __slots__ = ("count", "last", "time", "zeros")

    def __init__(self, zeros: list[int], now: int) -> None:
        self.zeros = list(zeros)
        self.time = self.last = now
        self.count = 0

    def queue(self, run: Projection, amounts: Amounts, least: int, step: int, bound: int, now: int) -> int:
        """When one more phantom behind everything real (`run`) and all others would start.

        `least` is when it would start without the others, `step` the time between two of them where the
        tenant's own buckets do not tell. No more than `bound` of them stand behind one another.
        """
        interval = max((-(-a // scale.p) for scale, a in zip(run.scales, amounts, strict=True)), default=0)
        run.zeros = list(map(max, run.zeros, self.zeros))
        run.time = max(run.time, self.time)
        start = max(run.start(amounts), least)
        if self.last > now:
            start = max(start, self.last + step)
        room = bound * max(interval, step)
        if start - least > room:
            return self._inside(least, room)
        self.zeros, self.time, self.last = run.zeros, run.time, start
        return start

    def queue_one(self, scale: Scale, zero: int, bound: int, now: int) -> int:
        """The same as `queue` for one request at one bucket, at `zero`, that nothing else holds up."""
        behind, unit, p = self.zeros[0], scale.unit, scale.p
        if zero > behind:
            behind = zero
        own = -(-(behind + unit) // p)
        if own < self.time:
            own = self.time
        last = self.last
        start = last + 1 if own <= last > now else own
        least, room = -(-(zero + unit) // p), bound * scale.interval
        if start - least > room:
            return self._inside(least, room)
        self.zeros[0] = scale.charge(behind, own, unit)
        self.time, self.last = own, start
        return start

    def _inside(self, least: int, room: int) -> int:
        """A time within the bound that no recent caller was given."""
        self.count = count = self.count + 1
        return least + 1 + ((count * GOLDEN & 0xFFFFFFFF) * room >> 32)

    def passed_at(self, scales: tuple[Scale, ...]) -> int:
        """The first whole nanosecond at which no refused caller would still be in line."""
        return max(self.time, self.last, *map(Scale.full_at, scales, self.zeros))
