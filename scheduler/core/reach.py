"""How far a store has loaded a line, and whether that is far enough to say whose turn it is."""

from __future__ import annotations

from scheduler.core.entry import Entry
from scheduler.core.line import Line
from scheduler.core.overload import is_late, rank
from scheduler.core.policy import Overload

Rank = tuple[int, int]
"""By which the jobs of a line go that is late: see `overload.rank`."""


class Reach:
    """Of a line that goes on behind its first jobs, which were loaded: the key of the `last` of these.

    `edge`: the rank up to which all are loaded, too, by which the jobs go while the line is late; None if
    the line was not late, or no order was declared for that. `coming`: how many of those that were loaded
    are yet to join the line, while what happened is played.
    """

    __slots__ = ("coming", "edge", "last")

    def __init__(self, last: int, edge: Rank | None = None) -> None:
        self.last = last
        self.edge = edge
        self.coming = 0

    def shows(self, line: Line, front: Entry | None, slot: bool, time: int, overload: Overload) -> bool:
        """Whether `front` is whose turn it is, whoever was not loaded. All continuations are."""
        if not slot:
            return True
        if not line.blocks or line.blocks[0][0].key > self.last:
            return False  # nor is it known whether the line is late
        if front is None or front.holder is not None or not is_late(line, time, overload):
            return True
        return self.edge is not None and rank(front, overload) <= self.edge
