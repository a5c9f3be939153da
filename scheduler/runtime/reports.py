"""What the scheduler tells about itself: levels of buckets, and statistics."""

from __future__ import annotations

from fractions import Fraction

from scheduler.core.account import UNLIMITED, Account, shape_of
from scheduler.core.gate import Gate
from scheduler.core.quota import DIMENSIONS, NS
from scheduler.runtime.arguments import check_tenant
from scheduler.runtime.jobs import Jobs
from scheduler.runtime.values import GateStatistics, Statistics

Levels = dict[str, tuple[int, Fraction, Fraction]]
"""Of each bucket by name: its burst, its permits per second and the permits it holds."""


def levels_of(account: Account, now: int) -> Levels:
    """The levels of an account's buckets, and its free slots as ``"concurrency"``."""
    shape = account.shape
    levels = {
        DIMENSIONS[index]: (
            scale.capacity // scale.unit,
            Fraction(scale.p * NS, scale.unit),
            Fraction(scale.level(zero, now), scale.unit),
        )
        for index, scale, zero in zip(shape.limits, shape.scales, account.zeros, strict=True)
    }
    slots = shape.quota.concurrency
    if slots is not None:
        levels["concurrency"] = (slots, Fraction(0), Fraction(max(0, slots - account.running)))
    return levels


def statistics_of(gate: Gate, waiting: int, now: int) -> GateStatistics:
    """How a gate is now, with so many jobs waiting for it."""
    rates = {name: getattr(gate.shape.quota, name) for name in DIMENSIONS}
    return GateStatistics(
        running=gate.running,
        slots=gate.slots if gate.slots < UNLIMITED else None,
        waiting=waiting,
        paused=max(0, gate.opens - now) / NS,
        closed=gate.closed_until is not None,
        limits={name: float(rate.per_second * 60) for name, rate in rates.items() if rate is not None},
        levels=gate.levels(now),
    )


class Reports(Jobs):
    """Snapshots, which leave no trace."""

    def levels(self, tenant: str) -> Levels:
        """A tenant's buckets now, exact, by name: burst, permits per second, permits held (below 0 in debt).

        ``"concurrency"`` counts free slots; they come back when jobs end, so its rate is 0. What has no limit
        is left out. Leaves no trace of a tenant that was not seen before.
        """
        engine, now = self.engine, self._now()
        engine.advance(now)
        self.changed()
        known = engine.tenants.get(check_tenant(tenant))
        return levels_of(known or Account(shape_of(engine.quota_of(tenant)), now), now)

    async def current_levels(self, tenant: str) -> Levels:
        """What `levels` says, asked of the store if there is one."""
        return self.levels(tenant)

    def _gate_now(self, gate: Gate, now: int) -> GateStatistics:
        lines = [t.lines[gate.name] for t in self.engine.tenants.values() if gate.name in t.lines]
        return statistics_of(gate, sum(line.length for line in lines), now)

    async def statistics(self, tenant: str | None = None) -> Statistics:
        """A snapshot of everything, or of one tenant."""
        engine = self.engine
        now = self._now()
        engine.advance(now)
        self.changed()
        if tenant is None:
            return Statistics(
                waiting=engine.waiting,
                running=engine.root.running,
                tenants=len(engine.tenants),
                granted=engine.granted,
                done=self.done,
                failed=self.counts["failed"],
                cancelled=self.counts["cancelled"],
                retried=self.counts["retried"],
                stalls=engine.stalls,
                refused={reason: count for reason, count in self.refusals.items() if count},
                gates={name: self._gate_now(gate, now) for name, gate in engine.gates.items()},
            )
        known = engine.tenants.get(check_tenant(tenant))
        if known is None:
            return Statistics(waiting=0, running=0, tenants=0)
        return Statistics(
            waiting=sum(line.length for line in known.lines.values()),
            running=known.running,
            tenants=1,
            levels=known.levels(now),
        )
