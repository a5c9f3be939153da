"""The engine of one who claims over a store: its own slots for jobs, and none for callers elsewhere."""

from __future__ import annotations

from collections.abc import Collection

from scheduler.core.engine import Engine
from scheduler.core.entry import WAITING, Entry
from scheduler.core.line import Line
from scheduler.core.stored import StoredJob


def runs_elsewhere(entry: Entry | None) -> bool:
    """Whether it is a caller that runs its own work, in its own process."""
    return isinstance(entry, StoredJob) and entry.home is not None


class Claims(Engine):
    """Grants jobs while the one who claims has slots, and callers that run elsewhere without taking any.

    Both stand in one line: a caller behind a job that finds no slot here waits until somebody takes the job.
    In the lines of `crowded` tenants that would be too long: nobody seems to have a slot for jobs, so that
    continuations pass them, as they do where all slots of a scheduler in memory are taken.
    """

    crowded: Collection[str] = frozenset()

    def _choose_front(self, line: Line, time: int) -> None:
        tenant, front = line.tenant, line.front
        crowded = tenant.name in self.crowded
        at_gate = line.placed is not None and line.agenda is line.gate.eligible
        self._lift(line)
        if at_gate and front is not None and front.state is WAITING and tenant.free > 0 and not crowded:
            # It went at its slot, but for one who takes it: nobody who came later goes before it.
            if self.root.free <= 0:
                return
        line.front = line.head(tenant.free > 0)
        if crowded and not runs_elsewhere(line.front):
            line.front = line.head(False)
        if line.front is None and line.empty:
            self._drop_line(line, time)

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
        if runs_elsewhere(entry) and entry.holder is None:
            self.root.free += 1
