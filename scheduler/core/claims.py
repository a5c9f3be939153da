"""The engine of one who claims over a store: its own slots for jobs, and none for callers elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from scheduler.core.engine import Engine
from scheduler.core.entry import REFUSED, WAITING, Entry, State
from scheduler.core.line import Line
from scheduler.core.overload import overtaken_until
from scheduler.core.policy import Reason, Refusal
from scheduler.core.reach import Reach
from scheduler.core.register import EXPIRE
from scheduler.core.stored import StoredJob, TenantState


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
    reaches: Mapping[str, Reach] = {}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.unknown: set[str] = set()
        """Tenants of whose lines more must be loaded: nobody goes there any more."""
        self.late: dict[str, int | None] = {}
        """Until when another order held in the lines of tenants."""

    def play(self, arrivals: Sequence[tuple[int, StoredJob]]) -> None:
        """Let jobs come in, each at its time, that can still fit."""
        fitting = []
        for time, job in arrivals:
            never = self._tenant(job.tenant, time).shape.never(job.cost)
            if never is None:
                fitting.append((time, job))
            else:  # its quota was changed while it stood outside of its line
                job.state, job.refusal, job.since = REFUSED, Refusal(Reason.NEVER, 0, never), time
                if job.paid:
                    self._tenant(job.tenant, time).refund(job.cost)
                self.moved.append(job)
        if self.overload is None:
            for time, job in fitting:
                self.restore(time, job.tenant, "", job)
            return
        for _, job in fitting:
            if job.tenant in self.reaches and not job.parked:
                self.reaches[job.tenant].coming += 1
        for time, group in groupby(fitting, itemgetter(0)):
            self._come_together(time, (job for _, job in group))

    def _come_together(self, time: int, jobs: Iterable[StoredJob]) -> None:
        """Let jobs wait that stand in their lines from a time on: whose turn it is takes all of them."""
        self._advance(time)
        tenants = {}
        for job in jobs:
            job.owner, job.shared = tenant, gate = self._tenant(job.tenant, time), self.gates[""]
            job.state, job.gate = WAITING, gate.name
            self.waiting += 1
            if job.expires is not None:
                self.events.put((job.expires, EXPIRE, job.key, job))
            line = self._line(tenant, gate)
            if not self._join_session(line, job):
                self._enter(line, job, time)
            if job.tenant in self.reaches and not job.parked:
                self.reaches[job.tenant].coming -= 1
            tenants[tenant.name] = tenant
        for tenant in tenants.values():
            self._place_all(tenant, time)
        self._flush(time, time)

    def _head(self, line: Line, slot: bool, time: int) -> Entry | None:
        name = line.tenant.name
        if self.overload is None:
            return line.head(slot)
        if name in self.unknown:
            return None
        front, reach = super()._head(line, slot, time), self.reaches.get(name)
        self.late[name] = overtaken_until(line) or self.late.get(name)
        if reach is None or reach.shows(line, front, slot, time, self.overload):
            return front
        if not reach.coming:
            self.unknown.add(name)
        return None

    def _choose_front(self, line: Line, time: int) -> None:
        tenant, front = line.tenant, line.front
        crowded = tenant.name in self.crowded
        kept = line.placed is not None and line.agenda is line.gate.eligible and not crowded
        self._lift(line)
        if kept and front is not None and front.state is WAITING and tenant.free > 0 and self.root.free <= 0:
            return  # it lacks one who takes it, from its slot on: nobody who came later goes before it
        line.front = self._head(line, tenant.free > 0, time)
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

    def _end_waiting(self, entry: Entry, state: State, time: int) -> None:
        super()._end_waiting(entry, state, time)
        if isinstance(entry, StoredJob):
            entry.since = time

    def _judge(self, line: Line, now: int) -> None:
        """Whoever makes a wait worse has it judged, over the whole line."""


def in_reach(
    states: Mapping[str, TenantState], jobs: Sequence[StoredJob], near: Collection[str]
) -> tuple[Sequence[StoredJob], set[str]]:
    """The jobs without continuations behind the last loaded job of a line that goes on, and whose those are.

    Whoever stands between the two goes before them. But not in the lines of those `near`, and of tenants
    without a free slot, where nobody goes but a continuation.
    """
    calls = [job for job in jobs if job.holder is not None and states[job.tenant].free]
    calls = [job for job in calls if job.tenant not in near]
    if not calls:
        return jobs, set()
    last: dict[str, int] = {}
    for job in jobs:
        if job.holder is None:
            last[job.tenant] = max(job.key, last.get(job.tenant, job.key))
    far = {job.sequence: job.tenant for job in calls if job.key > last.get(job.tenant, job.key)}
    return [job for job in jobs if job.sequence not in far], set(far.values())
