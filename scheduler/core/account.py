"""What the owner of a quota has used: the state of its buckets and slots. Tenants and gates are accounts.

All buckets of a quota are taken together or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from operator import add, attrgetter, gt, mul, sub

from scheduler.core.bucket import Scale
from scheduler.core.quota import DIMENSIONS, ONE, Cost, Quota, exact, full_burst

UNLIMITED = 1 << 62

SLOT_FLOOR = 50_000_000
"""Nanoseconds: nobody is told to come back for a slot sooner than this."""

Amounts = tuple[int, ...]
"""A cost in bucket units, one for each bucket of the quota that it is charged to."""


class Shape:
    """A quota made ready for arithmetic, shared by all accounts with an equal quota.

    Only two things ever change, since to start one job takes its amounts half a dozen times: `last` is the
    cost that was asked for last with its amounts, `fits` the one that was last found to fit.
    """

    __slots__ = (
        "capacities",
        "concurrency",
        "fits",
        "last",
        "limits",
        "metered",
        "nothing",
        "one",
        "one_never",
        "only",
        "quota",
        "scales",
        "share",
        "units",
        "used",
        "weight",
    )

    def __init__(self, quota: Quota) -> None:
        rates = [(index, name, getattr(quota, name)) for index, name in enumerate(DIMENSIONS)]
        self.quota = quota
        self.limits = tuple(index for index, _, rate in rates if rate is not None)
        self.scales = tuple(
            Scale.of(rate, full_burst(name, rate)) for _, name, rate in rates if rate is not None
        )
        self.units = tuple(scale.unit for scale in self.scales)
        self.capacities = tuple(scale.capacity for scale in self.scales)
        self.used = _reader([name for _, name, rate in rates if rate is not None])
        self.metered = any(index > 0 for index in self.limits)
        self.only = self.scales[0] if self.limits == (0,) else None
        self.concurrency = UNLIMITED if quota.concurrency is None else quota.concurrency
        self.weight = exact("weight", quota.weight).as_integer_ratio()
        self.share = self.weight[0] / self.weight[1]
        self.one = tuple(map(mul, self.used(ONE), self.units))
        self.last = ONE, self.one
        self.fits: Cost | None = None
        self.one_never = self._never(self.one)
        self.nothing = (0,) * len(self.scales)

    def amounts(self, cost: Cost) -> Amounts:
        """A cost, or a usage, in units of each bucket."""
        if cost is ONE:
            return self.one
        last = self.last
        if last[0] is not cost:
            self.last = last = cost, tuple(map(mul, self.used(cost), self.units))
        return last[1]

    def never(self, cost: Cost) -> tuple[str, int, int] | None:
        """The first limit that `cost` can never fit, as (name, cost, burst), or None."""
        if cost is ONE or not self.scales:
            return self.one_never
        if cost is self.fits:
            return None
        amounts = self.amounts(cost)
        if any(map(gt, amounts, self.capacities)):
            return self._never(amounts)
        self.fits = cost
        return None

    def _never(self, amounts: Amounts) -> tuple[str, int, int] | None:
        for index, scale, amount in zip(self.limits, self.scales, amounts, strict=True):
            if amount > scale.capacity:
                return DIMENSIONS[index], amount // scale.unit, scale.capacity // scale.unit
        return None

    def exceeds(self, usage: Cost, cost: Cost) -> bool:
        """Whether more was used than a cost, in any bucket."""
        return any(map(gt, self.amounts(usage), self.amounts(cost)))

    def interval(self, amounts: Amounts) -> int:
        """Nanoseconds in which the slowest bucket refills `amounts`."""
        return max((-(-a // scale.p) for scale, a in zip(self.scales, amounts, strict=True)), default=0)


def _reader(names: list[str]) -> Callable[[Cost], tuple[int, ...]]:
    """What reads these amounts of a cost, as a tuple."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda cost: tuple(getattr(cost, name) for name in names)


@lru_cache(maxsize=4096)
def shape_of(quota: Quota) -> Shape:
    """The shared shape of a quota."""
    return Shape(quota)


class Account:
    """The state under one quota: `zeros`, a bucket each; `free`, slots to be had.

    `hold` is the mean time in nanoseconds that jobs hold a slot, exponential with weight 1/8. It is learned
    at gates and for all of the engine; nothing is learned about a tenant, so that it can be forgotten.
    """

    __slots__ = ("free", "hold", "shape", "zeros")

    def __init__(self, shape: Shape, now: int) -> None:
        self.shape = shape
        self.zeros = [scale.full(now) for scale in shape.scales]
        self.free = shape.concurrency
        self.hold = SLOT_FLOOR

    @property
    def slots(self) -> int:
        """Slots that there are."""
        return self.shape.concurrency

    @property
    def running(self) -> int:
        """Slots in use."""
        return self.slots - self.free

    def levels(self, now: int) -> dict[str, float]:
        """Permits in each bucket by name; below 0 in debt."""
        shape = self.shape
        return {
            DIMENSIONS[index]: scale.level(zero, now) / scale.unit
            for index, scale, zero in zip(shape.limits, shape.scales, self.zeros, strict=True)
        }

    def affords(self, amounts: Amounts, now: int) -> bool:
        """Whether every bucket has its amount at `now`: the same as ``ready(amounts) <= now``."""
        only = self.shape.only
        if only is not None:
            return self.zeros[0] + amounts[0] <= only.p * now
        zeros = self.zeros
        for index, scale in enumerate(self.shape.scales):
            if zeros[index] + amounts[index] > scale.p * now:
                return False
        return True

    def ready(self, amounts: Amounts) -> int:
        """The first whole nanosecond at which every bucket affords its amount."""
        only = self.shape.only
        if only is not None:
            return -(-(self.zeros[0] + amounts[0]) // only.p)
        return max(map(Scale.ready, self.shape.scales, self.zeros, amounts), default=0)

    def surely(self, work: Iterable[int], begin: int) -> int:
        """By when jobs of so much work have started, if from `begin` on they lack nothing but permits.

        While one of them waits, a bucket that it waits for fills: so all together wait for no longer than if
        the work of each bucket came after that of the others. With one bucket that is when the last starts.
        """
        waits = (
            scale.ready(max(zero, scale.full(begin)), amount) - begin
            for scale, zero, amount in zip(self.shape.scales, self.zeros, work, strict=True)
        )
        return begin + sum(wait for wait in waits if wait > 0)

    def take(self, time: int, amounts: Amounts) -> None:
        """Charge every bucket at the slot time `time`."""
        zeros, only = self.zeros, self.shape.only
        if only is not None:
            zeros[0] = only.charge(zeros[0], time, amounts[0])
            return
        for index, scale in enumerate(self.shape.scales):
            at, amount = scale.p * time, amounts[index]  # `Scale.charge`, in place
            exact = zeros[index] + amount
            floor = (exact if at - scale.p < exact < at else at) - scale.capacity + amount
            zeros[index] = exact if exact > floor else floor

    def taken(self, amounts: Amounts, now: int) -> list[int] | None:
        """Every bucket as `take` at `now` would leave it; None if they do not all afford their amounts."""
        taken, zeros = [], self.zeros
        for index, scale in enumerate(self.shape.scales):
            at, amount = scale.p * now, amounts[index]
            exact = zeros[index] + amount
            if exact > at:
                return None
            floor = (exact if exact > at - scale.p else at) - scale.capacity + amount
            taken.append(exact if exact > floor else floor)
        return taken

    def exchange(self, charged: Amounts, used: Amounts) -> None:
        """Let what was used take the place of what was charged; what lies above the burst is capped."""
        self.zeros[:] = map(add, map(sub, self.zeros, charged), used)

    def refund(self, cost: Cost) -> None:
        """Return all that was charged for a job."""
        self.exchange(self.shape.amounts(cost), self.shape.nothing)

    def slot_wait(self, hold: int, ahead: int) -> int:
        """Nanoseconds until a slot is expected with `ahead` jobs before one, each holding it for `hold`."""
        return max(SLOT_FLOOR, hold * (ahead + 1) // self.slots)

    def full_at(self) -> int:
        """The first whole nanosecond at which every bucket is full."""
        return max(map(Scale.full_at, self.shape.scales, self.zeros), default=0)

    def reshape(self, shape: Shape, now: int) -> None:
        """Change the quota: levels are kept where a bucket stays, a new bucket starts full."""
        self.zeros = self.carry(self.zeros, shape, now)
        self.free += shape.concurrency - self.shape.concurrency
        self.shape = shape

    def carry(self, zeros: list[int], shape: Shape, now: int) -> list[int]:
        """Buckets of this account in the units of another shape."""
        old = {
            index: (scale, zero)
            for index, scale, zero in zip(self.shape.limits, self.shape.scales, zeros, strict=True)
        }
        return [
            old[index][0].rescale(old[index][1], now, scale) if index in old else scale.full(now)
            for index, scale in zip(shape.limits, shape.scales, strict=True)
        ]


class Projection:
    """An account's buckets run forward from `time`, job by job, exactly as grants would charge them."""

    __slots__ = ("last", "scales", "time", "zeros")

    def __init__(self, account: Account, time: int) -> None:
        self.scales = account.shape.scales
        self.zeros = list(account.zeros)
        self.time = self.last = time

    def start(self, amounts: Amounts) -> int:
        """When the next job of this cost starts, in nanoseconds; the projection moves there."""
        time = self.peek(amounts)
        self.zeros = [
            scale.charge(zero, time, amount)
            for scale, zero, amount in zip(self.scales, self.zeros, amounts, strict=True)
        ]
        self.time = time
        return time

    def follow(self, account: Account, slot: int, amounts: Amounts) -> bool:
        """Whether a real grant, about to be charged at `slot`, is where the run had it."""
        expected, self.last = max(self.last, account.ready(amounts)), slot
        return slot == expected

    def peek(self, amounts: Amounts) -> int:
        """When the next job of this cost would start, without moving."""
        return max(self.time, max(map(Scale.ready, self.scales, self.zeros, amounts), default=0))
