"""Real time, simulated time, and the scale between them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import formatdate
from fractions import Fraction

SECOND_NS = 1_000_000_000


class SimulatedTime:
    """Turns real nanoseconds into simulated ones: with a scale of 0.01, ten real milliseconds are one second.

    Buckets, time windows and batches live in simulated time. What a client reads in a header is in its own,
    real time.
    """

    def __init__(
        self,
        scale: float,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """Start the simulated clock at zero; both clocks can be replaced."""
        # The decimal text, because the binary fraction nearest to 0.01 would make the refill inexact.
        self._ratio = Fraction(str(scale))
        self._monotonic_ns = monotonic_ns
        self._wall_s = wall_s
        self._start_ns = monotonic_ns()

    def now_ns(self) -> int:
        """Read the real monotonic clock, in nanoseconds."""
        return self._monotonic_ns()

    def wall_s(self) -> float:
        """Read the real wall clock, in seconds since the epoch."""
        return self._wall_s()

    def simulated_ns(self, at_ns: int) -> int:
        """Return the simulated time at a real monotonic time, rounded down."""
        return (at_ns - self._start_ns) * self._ratio.denominator // self._ratio.numerator

    def real_ns(self, seconds: float) -> int:
        """Return how many real nanoseconds a simulated duration in seconds lasts."""
        return round(seconds * SECOND_NS * self._ratio.numerator / self._ratio.denominator)

    def real_s(self, simulated_ns: int) -> float:
        """Return how many real seconds a simulated duration in nanoseconds lasts."""
        return simulated_ns * self._ratio.numerator / (self._ratio.denominator * SECOND_NS)

    async def sleep_until(self, due_ns: int) -> None:
        """Sleep until a real monotonic time; return at once if it has passed."""
        delay_ns = due_ns - self._monotonic_ns()
        if delay_ns > 0:
            await asyncio.sleep(delay_ns / SECOND_NS)

    async def sleep(self, seconds: float) -> None:
        """Sleep for a simulated duration."""
        await self.sleep_until(self._monotonic_ns() + self.real_ns(seconds))


def rfc3339(wall_s: float) -> str:
    """Write a wall time as Anthropic does: whole seconds, rounded up, in UTC."""
    return datetime.fromtimestamp(math.ceil(wall_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def http_date(wall_s: float) -> str:
    """Write a wall time as an HTTP date, which drops the fraction of a second."""
    return formatdate(wall_s, usegmt=True)
