"""The engine of one who claims over a store: its own slots for jobs, and none for callers elsewhere."""

from __future__ import annotations

from scheduler.core.engine import Engine
from scheduler.core.entry import Entry, State
from scheduler.core.line import Line
from scheduler.core.stored import StoredJob


def runs_elsewhere(entry: Entry | None) -> bool:
    """Whether it is a caller that runs its own work, in its own process."""
    return isinstance(entry, StoredJob) and entry.home is not None


class Claims(Engine):
    """Grants jobs while the one who claims has slots, and callers that run elsewhere without taking any.

    Both stand in one line: a caller behind a job that finds no slot here waits until somebody takes the job.
    """

    def _join_gate(self, line: Line) -> None:
        front = line.front
        if front is None or not runs_elsewhere(front):
            super()._join_gate(line)
            return
        # Like a continuation, it brings what it needs beside the tenant's own permits and slot.
        line.agenda = line.gate.holding
        line.agenda.put((line.gate.fair.start(line.tenant.name), front.key, line))
        self.touched[line.gate] = None

    def _grant(self, entry: Entry, time: int, now: int, start: int | None, line: Line | None) -> None:
        super()._grant(entry, time, now, start, line)
        if runs_elsewhere(entry):
            self.root.free += 1

    def _end_waiting(self, entry: Entry, state: State, time: int) -> None:
        super()._end_waiting(entry, state, time)
        if isinstance(entry, StoredJob):
            entry.since = time
