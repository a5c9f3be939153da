"""What every case needs: clocks, percentiles, pacing figures, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

NS = 1_000_000_000

Row = dict[str, float | None]
"""The figures of one run. None: the run did not get far enough to know."""

Log = list[tuple[int, int]]
"""(nanosecond, number of the waiter), in the order in which waiters were released."""

now = time.monotonic_ns
cpu = time.process_time_ns


class NotPossible(Exception):
    """The subject has no way to do what the case asks; the text says what is missing."""


def percentile(values: Sequence[float], part: float) -> float | None:
    """The smallest value that at least `part` of all values do not exceed; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(part * 1000) * len(ordered) // 1000) - 1))]


def milliseconds(nanoseconds: float | None) -> float | None:
    """Nanoseconds as milliseconds."""
    return None if nanoseconds is None else nanoseconds / 1e6


def slot(start: int, rate: int, burst: int, number: int) -> int:
    """When permit `number` (from 0) of a bucket that was full at `start` is due, rounded down."""
    return start + max(0, number - burst + 1) * NS // rate


def errors(times: Sequence[int], start: int, rate: int, burst: int, after: int) -> list[int]:
    """How far each release was from its slot, for the slots that were due after `after`.

    The k-th release is held against the k-th slot: who was released is told by the inversions.
    """
    slots = (slot(start, rate, burst, number) for number in range(len(times)))
    return [abs(time - due) for time, due in zip(times, slots, strict=True) if due > after]


def pacing(log: Log, expected: int, start: int, rate: int, burst: int, after: int) -> Row:
    """The figures of one paced line. `start` must be read before the first waiter asks.

    A release before its slot is then certain: the bucket cannot have been charged before it was asked.
    """
    times = [time for time, _ in log]
    late = errors(times, start, rate, burst, after)
    end = slot(start, rate, burst, expected - 1)
    complete = len(log) >= expected
    return {
        "total": (times[-1] - start) / (end - start) if complete and end > start else None,
        "p50_ms": milliseconds(percentile(late, 0.5)),
        "p99_ms": milliseconds(percentile(late, 0.99)),
        "max_ms": milliseconds(max(late, default=None)),
        "inversions": sum(1 for (_, one), (_, two) in pairwise(log) if two < one),
        "early": sum(1 for number, time in enumerate(times) if time < slot(start, rate, burst, number)),
        "released": len(log),
        "expected": expected,
    }


def resident() -> int:
    """Bytes of this process in memory now; where the system does not tell, the most there ever were."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()
