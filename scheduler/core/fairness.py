"""Start-time fair queueing between the tenants that are backlogged at a gate.

P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queueing: A Scheduling Algorithm for Integrated Services
Packet Switching Networks", SIGCOMM 1996. A head that becomes eligible gets the start tag ``S = max(V, F)``;
the smallest S is served, which sets ``V = S`` and the tenant's finish tag ``F = S + cost / weight``. Over any
time in which two tenants stay backlogged, the services they got per weight differ by at most one largest job
each.

While a tenant stands there its tags go by its own `F` alone. That falls below `V` only if less was used than
was charged: it gets that back, though others were served meanwhile. Who comes from elsewhere begins at `V`.

When nobody waits at the gate a busy period ends: every tag is forgotten, so an idle tenant saves up no credit
and a tenant with no debt costs no memory. Tags are integers: cost and weight are scaled once.
"""

from __future__ import annotations

from scheduler.core.account import Amounts, Shape

TAG_SCALE = 1 << 20
"""Tags per nanosecond of gate time at weight 1: the rounding of a weight is below one part in a million."""

REQUEST = 1_000_000_000
"""The cost of a job, in nanoseconds of gate time, behind a gate that has no rate."""


def fair_cost(shape: Shape, amounts: Amounts) -> int:
    """A job's scalar cost at a gate: the largest of its amounts over the gate's rates, never 0."""
    if not shape.scales:
        return REQUEST
    return max(1, shape.interval(amounts))


class FairOrder:
    """The tags of one gate: its virtual time, tenants' finish tags, and the number of the busy period.

    `entered`: of those who stand there, the virtual time when they came. `served`: whether anybody was, in
    this busy period.
    """

    __slots__ = ("entered", "finish", "period", "served", "virtual")

    def __init__(self) -> None:
        self.period = 1
        self.served = False
        self.virtual = 0
        self.finish: dict[str, int] = {}
        self.entered: dict[str, int] = {}

    def start(self, tenant: str) -> int:
        """The start tag of a tenant's head that becomes eligible now."""
        return max(self.entered.get(tenant, self.virtual), self.finish.get(tenant, 0))

    def enter(self, tenant: str) -> int:
        """A tenant's head stands here, as one before it may have until now: its start tag."""
        self.entered.setdefault(tenant, self.virtual)
        return self.start(tenant)

    def leave(self, tenant: str) -> None:
        """No head of a tenant stands here any more."""
        self.entered.pop(tenant, None)

    def serve(self, tenant: str, start: int, step: int, reached: int) -> int:
        """Account for a grant with start tag `start` that costs `step`; virtual time has `reached` this."""
        self.served = True
        self.virtual = max(self.virtual, reached)
        self.finish[tenant] = start + step
        return self.period

    def correct(self, tenant: str, step: int, period: int) -> None:
        """Add to (or, below 0, take from) a tenant's debt for a grant that made it, in that busy period."""
        if period == self.period and tenant in self.finish:
            self.finish[tenant] = max(0, self.finish[tenant] + step)

    def debt(self, tenant: str) -> float:
        """How far a tenant is ahead of the others, in nanoseconds of gate time at weight 1."""
        return max(0, self.finish.get(tenant, 0) - self.virtual) / TAG_SCALE

    def has_debt(self, tenant: str) -> bool:
        """Whether forgetting the tenant would change who is served next."""
        return self.finish.get(tenant, 0) > self.virtual

    def forget(self, tenant: str) -> None:
        """Forget a tenant that has no debt."""
        self.finish.pop(tenant, None)

    def end_busy_period(self) -> None:
        """Forget every tag."""
        if self.served:
            self.served = False
            self.finish.clear()
            self.period += 1
        self.entered.clear()
        self.virtual = 0


def weighted(cost: int, weight: tuple[int, int]) -> int:
    """A scalar cost per weight, as a step of tags; at least 1 for a positive cost."""
    step = cost * TAG_SCALE * weight[1] // weight[0]
    return step or (1 if cost > 0 else 0)
