"""Overload: in what order a line goes whose oldest job has waited for too long, and who need not begin.

First come, first served keeps everybody waiting equally long, which under lasting overload means: too long.
Then it is better to serve some in time, those with the next deadline or those that came last, until the line
is short again (B. Maurer, "Fail at Scale", ACM Queue 13(8), 2015, describes the second as adaptive LIFO).
"""

from __future__ import annotations

from scheduler.core.entry import Entry
from scheduler.core.line import Line
from scheduler.core.policy import Cause, Overload


def head(line: Line, slot: bool, time: int, overload: Overload) -> Entry | None:
    """Whose turn it is in a line; `slot`: whether one is to be had. Later messages of runs come first."""
    if not slot or not line.blocks:
        return line.head(slot)
    if time - line.blocks[0][0].arrival <= overload.target_ns:
        line.urgent = None
        return line.head(slot)
    if line.continuations:
        return line.continuations[0]
    line.delay(Cause.OVERLOAD_ORDER, time)
    return line.last() if overload.order == "newest" else line.most_urgent()


def too_late(entry: Entry, time: int, overload: Overload | None) -> bool:
    """Whether a job would not end before its deadline, by the mean time for which jobs run at its gate."""
    if overload is None or entry.expires is None or entry.holder is not None:
        return False
    return time + entry.shared.hold > entry.expires
