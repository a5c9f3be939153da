"""What was charged elsewhere while an account could not be reached: it is charged all the same, later.

A charge at a time moves a bucket's `zero` to ``max(zero, full at that time) + amount``, and a row of such
steps is ``max(zero + sum, floor)`` again, with two numbers that do not depend on `zero`. So a process that
has not got the account can keep what it charged, in O(1), and put it there as if it had been charged then.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.core.account import Shape
from scheduler.core.quota import NOTHING, WORD, Cost, Usage


class Owed:
    """Charges to an account of `shape` that are not in it yet. `used`: all of them together."""

    __slots__ = ("_floors", "_sums", "shape", "used")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.used = NOTHING
        self._sums = [0] * len(shape.scales)
        self._floors: list[int | None] = [None] * len(shape.scales)

    def charge(self, time: int, cost: Cost) -> None:
        """Charge a cost at a time, in nanoseconds of the account's clock."""
        for index, (scale, amount) in enumerate(
            zip(self.shape.scales, self.shape.amounts(cost), strict=True)
        ):
            floor, full = self._floors[index], scale.full(time)
            self._floors[index] = amount + (full if floor is None else max(floor, full))
            self._sums[index] += amount
        self.used = _moved(self.used, NOTHING, cost)

    def correct(self, cost: Cost, usage: Usage) -> None:
        """Replace what was charged by what was used."""
        charged, real = self.shape.amounts(cost), self.shape.amounts(usage)
        for index, more in enumerate(r - c for r, c in zip(real, charged, strict=True)):
            floor = self._floors[index]
            self._floors[index] = None if floor is None else floor + more
            self._sums[index] += more
        self.used = _moved(self.used, cost, usage)

    def onto(self, zeros: Sequence[int], shape: Shape, now: int) -> list[int]:
        """The account's buckets with all of it charged.

        None of it counts as later than `now`: the clock may have been set back. Where the account has got
        another quota meanwhile, all of it is charged at `now`, which is never too little.
        """
        if shape.quota != self.shape.quota:
            amounts = shape.amounts(self.used)
            return [
                scale.charge(zero, now, amount)
                for scale, zero, amount in zip(shape.scales, zeros, amounts, strict=True)
            ]
        return [
            zero + total if floor is None else max(zero + total, min(floor, scale.full(now) + total))
            for scale, zero, total, floor in zip(shape.scales, zeros, self._sums, self._floors, strict=True)
        ]


def _within(total: int) -> int:
    """As much of a sum as a usage can say."""
    return max(0, min(total, WORD - 1))


def _moved(used: Usage, less: Cost, more: Cost) -> Usage:
    return Usage(
        _within(used.requests - less.requests + more.requests),
        _within(used.input_tokens - less.input_tokens + more.input_tokens),
        _within(used.output_tokens - less.output_tokens + more.output_tokens),
    )
