"""Overload: in what order a line goes whose oldest job has waited for too long, and who need not begin.

First come, first served keeps everybody waiting equally long, which under lasting overload means: too long.
Then it is better to serve some in time, those with the next deadline or those that came last, until the line
is short again (B. Maurer, "Fail at Scale", ACM Queue 13(8), 2015, describes the second as adaptive LIFO).

Whose turn it is follows from who stands in the line, and from the time, alone. So whoever looks at a line
only now and then, and plays what happened since, finds the same.
"""

from __future__ import annotations

from scheduler.core.account import SLOT_FLOOR
from scheduler.core.entry import Entry
from scheduler.core.line import Line, Onset, urgency
from scheduler.core.lines import Lines
from scheduler.core.outlook import since
from scheduler.core.policy import Cause, Overload, Reason, Refusal
from scheduler.core.register import LATE


def is_late(line: Line, time: int, overload: Overload) -> bool:
    """Whether the oldest job of a line has waited for too long."""
    return bool(line.blocks) and time - line.blocks[0][0].arrival > overload.target_ns


def rank(entry: Entry, overload: Overload) -> tuple[int, int]:
    """By which the jobs of a line go that is late, the least first."""
    return (-entry.key, 0) if overload.order == "newest" else urgency(entry)


def head(line: Line, slot: bool, time: int, overload: Overload) -> Entry | None:
    """Whose turn it is in a line; `slot`: whether one is to be had. Later messages of runs come first."""
    if not slot or not line.blocks:
        return line.head(slot)
    if not is_late(line, time, overload):
        line.urgent = None
        return line.head(slot)
    if line.continuations:
        return line.continuations[0]
    front = line.last() if overload.order == "newest" else line.most_urgent()
    if front is not line.blocks[0][0]:
        line.delay(Cause.OVERLOAD_ORDER, time)
    return front


def too_late(entry: Entry, time: int) -> bool:
    """Whether a job would not end before its deadline, by the mean time for which jobs run at its gate.

    Who need not wait at all is begun all the same: or that mean, once it was long, would never be another.
    """
    if entry.expires is None or entry.holder is not None or time <= entry.arrival:
        return False
    return time + entry.shared.hold > entry.expires


def latest_start(entry: Entry, overload: Overload | None) -> int | None:
    """Until when a job must have begun to be worth it, None if that does not matter: see `too_late`."""
    if overload is None or entry.expires is None or entry.holder is not None:
        return entry.expires
    return entry.expires - entry.shared.hold


def overtaken_until(line: Line) -> int | None:
    """Until when another order than that of its keys held in a line, as far as is known there."""
    return None if line.late is None else line.late.get(Cause.OVERLOAD_ORDER)


def is_overtaken(line: Line, time: int, overload: Overload | None) -> bool:
    """Whether somebody goes before the oldest job of a line now, and so before whoever came by now."""
    if overload is None or line.front is None or line.front.holder is not None:
        return False
    return is_late(line, time, overload) and line.front is not line.blocks[0][0]


class Overloaded(Lines):
    """What is done about lines that are late, where anything was declared."""

    def _head(self, line: Line, slot: bool, time: int) -> Entry | None:
        """Whose turn it is in a line, which is looked at anew when it will be late."""
        if self.overload is None:
            return line.head(slot)
        first = line.blocks[0][0] if line.blocks else None
        begins = 0 if first is None else first.arrival + self.overload.target_ns + 1
        onset = line.onset
        if onset is not None and onset.placed is not None and onset.placed[0] != begins:
            self.events.drop(onset)
        if first is not None and begins > time and (onset is None or onset.placed is None):
            line.onset = onset = onset or Onset(line)
            self.events.put((begins, LATE, first.key, onset))
        return head(line, slot, time, self.overload)

    def _gives_up(self, line: Line, front: Entry, time: int) -> bool:
        """Refuse whom to begin would be in vain, and who was overtaken for too long, before `front` goes.

        True if that was anybody: then it may be somebody else's turn.
        """
        if too_late(front, time):
            self._refuse_now(front, Reason.DEADLINE, time)
            return True
        anybody = False
        while line.front is not None and line.blocks and (oldest := line.blocks[0][0]) is not line.front:
            bound = oldest.policy.max_wait_ns
            if bound is None or time - since(oldest) <= bound:
                break
            self._refuse_now(oldest, Reason.MAX_WAIT, time)
            anybody = True
        return anybody

    def _refuse_now(self, entry: Entry, reason: Reason, time: int) -> None:
        self._drop(entry, Refusal(reason, entry.shared.wait_of_refused(time + SLOT_FLOOR, time)), time)
