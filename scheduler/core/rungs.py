"""Ladders over lines that are kept elsewhere: which rungs a job takes, by the rules of `ladder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scheduler.core import sharing
from scheduler.core.account import UNLIMITED, Projection
from scheduler.core.engine import Engine
from scheduler.core.entry import Entry
from scheduler.core.ladder import Plan
from scheduler.core.line import Line
from scheduler.core.policy import Outlook
from scheduler.core.quota import Quota
from scheduler.core.shared import SharedGate
from scheduler.core.signals import Upstream
from scheduler.core.stored import StoredJob, TenantState

NONE = Upstream(Quota())
"""In front of nothing."""


class Rungs(Engine):
    """The engine with the lines of one tenant, to look ahead from: it decides, and moves nothing.

    `line`: the tenant's jobs in line, at whatever gate. The gates must know who stands there. `deferred`: how
    many jobs are deferred, of `most` that may be.
    """

    def __init__(
        self,
        now: int,
        gates: Mapping[str, SharedGate],
        state: TenantState,
        line: Sequence[StoredJob],
        *,
        deferred: int = 0,
        most: int = 0,
    ) -> None:
        super().__init__(now, lambda _: Quota(), {}, UNLIMITED)
        self.gates.update(gates)
        self.deferred, self.max_deferred = deferred, most
        self.parked = 0
        self._shared, self._state = gates, state
        self.owner = tenant = state.tenant()
        for job in line:
            if job.gate not in tenant.lines:
                gate = gates.get(job.gate)
                tenant.lines[job.gate] = Line(tenant, gate or SharedGate("", NONE, now))
            tenant.lines[job.gate].push(job)
        for name, own in state.lines.items():
            if name in tenant.lines:
                tenant.lines[name].outside = own.waiting - tenant.lines[name].size
        tenant.steps = {name: own.step for name, own in state.lines.items() if own.step}
        for gate in gates.values():
            gate.here([state])

    def step_aside(self, job: StoredJob, now: int, parked: int = 0) -> bool:
        """Take the rungs whose time has come and that help. True if the job goes another way now.

        `parked`: jobs of its session before it.
        """
        job.owner, job.shared, self.parked = self.owner, self.gates[job.gate], parked
        another = self._step_aside(job, now)
        for name, own in self._state.lines.items():
            own.step = (self.owner.steps or {}).get(name, 0)
        for name, step in (self.owner.steps or {}).items():
            self._state.line(name).step = step
        return another

    # --- looking ahead ------------------------------------------------------------------------------

    def outlook(self, job: StoredJob, now: int) -> Outlook:
        """What one of these jobs in line can look forward to."""
        job.owner, job.shared = self.owner, self.owner.lines[job.gate].gate
        return self._outlook(job, now)[0]

    def _startable(self, entry: Entry, now: int) -> bool:
        gate = self._shared[entry.shared.name]
        if not isinstance(entry, StoredJob) or self.parked:
            return False
        return sharing.starts(self._state, gate, entry, now, self.overload)

    def startable(self, job: StoredJob, now: int, parked: int) -> bool:
        """Whether a new job can start at once, as far as is known."""
        job.owner, job.shared, self.parked = self.owner, self.gates[job.gate], parked
        never = self.owner.shape.never(job.cost) or job.shared.shape.never(job.cost)
        return never is None and self._startable(job, now)

    def _outlook(self, entry: Entry, now: int) -> tuple[Outlook, Projection]:
        with sharing.coming(entry.shared):
            return super()._outlook(entry, now)

    def _roughly(self, entry: Entry, now: int) -> int:
        with sharing.coming(entry.shared):
            return super()._roughly(entry, now)

    def _session_ahead(self, entry: Entry) -> int:
        return self.parked

    # --- what a store does itself -------------------------------------------------------------------

    def _move(self, entry: Entry, plan: Plan, now: int) -> None:
        self._go_to(entry, plan)

    def _defer(self, entry: Entry, now: int) -> None:
        entry.deferred = True
