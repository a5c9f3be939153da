"""A tenant: the owner of a quota and of lines, and the echo of those it had to refuse."""

from __future__ import annotations

from typing import Any

from scheduler.core.account import Account, Amounts, Shape
from scheduler.core.bucket import Scale
from scheduler.core.line import Line

GOLDEN = 11400714819323198485
"""2^64 over the golden ratio: its multiples spread evenly in any range (Knuth, TAOCP 3, section 6.4)."""


class Tenant(Account):
    """The state of one tenant.

    `lines` by gate name, only while somebody waits. `echo` is None until somebody was refused. `override`
    marks a quota that was set by hand and must not be forgotten.
    """

    __slots__ = ("echo", "lines", "name", "override", "placed")

    def __init__(self, name: str, shape: Shape, now: int) -> None:
        super().__init__(shape, now)
        self.name = name
        self.lines: dict[str, Line] = {}
        self.echo: Echo | None = None
        self.override = False
        self.placed: tuple[Any, ...] | None = None


class Echo:
    """Refused callers as phantoms in line, in O(1).

    A phantom holds no permit and delays nobody; it only makes the next refusal's time later, so that callers
    refused one after another come back one after another. `zeros` are the tenant's buckets as they would be
    had the phantoms queued; they pass by themselves as time goes on. `time` does the same for refusals by a
    gate, a pause or a slot. `count` spreads the times inside the bound once it is reached.
    """

    __slots__ = ("count", "time", "zeros")

    def __init__(self, buckets: int) -> None:
        self.zeros = [0] * buckets
        self.time = 0
        self.count = 0

    def queue(self, zeros: list[int], amounts: Amounts, bound: int) -> list[int]:
        """Put one more phantom behind `zeros` (everything real); at most `bound` times its cost behind it."""
        spread = []
        for zero, amount, phantom in zip(zeros, amounts, self.zeros, strict=True):
            room = bound * amount
            behind = max(0, phantom - zero) + amount
            if behind > room > 0:
                behind = self._inside(amount, room)
            spread.append(zero + behind)
        self.zeros = [max(old, new) for old, new in zip(self.zeros, spread, strict=True)]
        return spread

    def after(self, time: int, step: int, bound: int) -> int:
        """The time of one more phantom behind `time`, `step` nanoseconds after the last."""
        behind = max(0, self.time + step - time)
        if behind > bound * step:
            behind = self._inside(step, bound * step)
        self.time = max(self.time, time + behind)
        return time + behind

    def passed(self, scales: tuple[Scale, ...], now: int) -> bool:
        """Whether no refused caller would still be in line."""
        return self.time <= now and all(map(lambda scale, zero: scale.full_at(zero) <= now, scales, self.zeros))

    def _inside(self, least: int, room: int) -> int:
        """A place within the bound that no recent caller was given."""
        self.count += 1
        return least + (self.count * GOLDEN % (1 << 64)) * (room - least) // (1 << 64)
