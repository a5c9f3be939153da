"""Changes of limits while jobs wait: a new quota, a pause, and the judgement of waits that got worse."""

from __future__ import annotations

from scheduler.core.account import Projection, shape_of
from scheduler.core.entry import Entry, State
from scheduler.core.line import Line
from scheduler.core.outlook import owed
from scheduler.core.policy import Cause, Reason, Refusal
from scheduler.core.quota import Quota
from scheduler.core.schedule import Schedule


class Changes(Schedule):
    """What moves the limits under jobs that were promised something else."""

    def set_quota(self, now: int, tenant_name: str, quota: Quota) -> None:
        """Change a tenant's limits with its jobs waiting: advance under the old quota, then plan anew.

        Jobs that can never fit any more are refused with NEVER; those behind them move up.
        """
        self._advance(now)
        tenant = self._tenant(tenant_name, now)
        shape, weight = shape_of(quota), tenant.shape.quota.weight
        if tenant.echo is not None:
            tenant.echo.zeros = tenant.carry(tenant.echo.zeros, shape, now)
        tenant.reshape(shape, now)
        tenant.override = True
        for line in list(tenant.lines.values()):
            line.gate.crowd += quota.weight - weight
            line.recount()
            self._worsen(line, Cause.LIMIT_LOWERED, now)
            for entry in self._members(line):
                never = shape.never(entry.cost)
                if never is not None:
                    self._drop(entry, Refusal(Reason.NEVER, 0, never), now)
            self._judge(line, now)
        self._place_all(tenant, now)
        self._flush(now, now)

    def pause(self, now: int, gate_name: str, until: int) -> None:
        """Let nobody pass a gate before `until`; a time that is past ends a pause."""
        self._advance(now)
        gate = self.gates[gate_name]
        gate.paused_until = until
        gate.delay(Cause.PAUSE, until)
        self.touched[gate] = None
        self._flush(now, now)
        for tenant in list(self.tenants.values()):
            line = tenant.lines.get(gate_name)
            if line is not None:
                self._judge(line, now)
        self._flush(now, now)

    def _members(self, line: Line) -> list[Entry]:
        """Everybody of a line, in it and outside it for a session's sake."""
        name = line.tenant.name
        parked = [
            entry
            for (owner, _), behind in self.sessions.items()
            if owner == name
            for entry in behind
            if entry.gate is line.gate
        ]
        return [*line, *parked]

    def _worsen(self, line: Line, cause: Cause, now: int) -> None:
        line.delay(cause, now)
        line.tail = None

    def _judge(self, line: Line, now: int) -> None:
        """Refuse who would now wait longer than allowed, by the tenant's own buckets and a pause."""
        if line.tightest is None or not line.size:
            return
        tenant, gate = line.tenant, line.gate
        run = Projection(tenant, now)
        for entry in list(line):
            start = max(run.peek(owed(tenant, entry)), gate.paused_until)
            bound, since = entry.policy.max_wait_ns, max(entry.arrival, entry.slot)
            if bound is not None and start - since > bound and start > now:
                self._drop(entry, Refusal(Reason.MAX_WAIT, start - now), now)
            else:
                run.start(owed(tenant, entry))

    def _drop(self, entry: Entry, refusal: Refusal, now: int) -> None:
        """Refuse a job that waits."""
        self._end_waiting(entry, State.REFUSED, now)
        entry.refusal = refusal
        self.moved.append(entry)
