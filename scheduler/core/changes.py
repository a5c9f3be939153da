"""Changes of limits while jobs wait: a new quota, a pause, and the judgement of waits that got worse."""

from __future__ import annotations

from scheduler.core.account import shape_of
from scheduler.core.entry import WAITING, Entry
from scheduler.core.policy import Cause, Reason, Refusal
from scheduler.core.quota import Quota
from scheduler.core.schedule import Schedule
from scheduler.core.tenant import Tenant


class Changes(Schedule):
    """What moves the limits under jobs that were promised something else."""

    def set_quota(self, now: int, tenant_name: str, quota: Quota) -> None:
        """Change a tenant's limits with its jobs waiting: advance under the old quota, then plan anew.

        Jobs that can never fit any more are refused with NEVER; those behind them move up.
        """
        self._advance(now)
        tenant = self._tenant(tenant_name, now)
        shape, share = shape_of(quota), tenant.shape.share
        for echo in (tenant.echoes or {}).values():
            echo.zeros = tenant.carry(echo.zeros, shape, now)
        tenant.reshape(shape, now)
        tenant.override = True
        for line in tenant.lines.values():
            line.gate.crowd += shape.share - share
            line.recount()
        self._worsen(tenant, Cause.LIMIT_LOWERED, now)
        for entry in self._members(tenant):
            never = shape.never(entry.cost)
            if never is not None and entry.state is WAITING:
                self._drop(entry, Refusal(Reason.NEVER, 0, never), now)
        self._judge_all(tenant, now)
        self._place_all(tenant, now)
        self._flush(now, now)

    def _members(self, tenant: Tenant) -> list[Entry]:
        """All waiting jobs of a tenant but those in backoff, which are looked at when they return."""
        inside = [entry for line in tenant.lines.values() for entry in line]
        behind = [e for (owner, _), parked in self.sessions.items() if owner == tenant.name for e in parked]
        return inside + behind
