"""The bucket: exact for any rational rate, and its whole state is one integer.

Let the rate be p/q permits per nanosecond, reduced, and count permits in *units* of 1/q permit. A bucket
then refills by p units per nanosecond, holds at most `capacity` = burst · q units, and all its arithmetic is
in integers. Its state `zero` is the moment, in units of 1/p nanosecond, at which it would have been empty::

    level(t) = min(capacity, p·t − zero)

Taking `amount` units moves `zero` later by `amount`; giving back moves it earlier. While the bucket is not
full nothing else happens to it, so a backlog is served at exact multiples of the interval however late
anybody wakes up, and no rounding can accumulate. This is the virtual-scheduling form of the generic cell rate
algorithm (ITU-T I.371, annex A), kept in units that make every rational rate exact.

A *slot time* is the exact rational moment at which the bucket affords a cost. Callers work in whole
nanoseconds, rounded up; when a charge falls in the nanosecond in which the bucket became ready, it is charged
at the exact moment, and so the over-refill below one nanosecond is carried instead of clipped at the burst.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.core.quota import Rate


@dataclass(frozen=True, slots=True)
class Scale:
    """The rule of one bucket, without its state: units, refill, capacity. Shared by all of equal rate."""

    p: int
    """Units refilled per nanosecond."""
    unit: int
    """Units in one permit (q)."""
    capacity: int
    """Units that the full bucket holds."""
    room: int
    """Units that the full bucket holds when one permit is gone."""
    interval: int
    """Nanoseconds in which one permit is refilled, rounded up."""

    @classmethod
    def of(cls, rate: Rate, burst: int) -> Scale:
        """Compile a rate with the burst that it has where it is used."""
        p, q = rate.per_nanosecond
        return cls(p, q, burst * q, (burst - 1) * q, -(-q // p))

    def full(self, now: int) -> int:
        """The state of a bucket that is full at `now` (nanoseconds)."""
        return self.p * now - self.capacity

    def level(self, zero: int, now: int) -> int:
        """Units held at `now`; below 0 when more was used than was there."""
        return min(self.capacity, self.p * now - zero)

    def ready(self, zero: int, amount: int) -> int:
        """The first whole nanosecond at which `amount` units are there."""
        return -(-(zero + amount) // self.p)

    def charge(self, zero: int, time: int, amount: int) -> int:
        """The state after `amount` units were taken at `time`, which must not be before `ready`."""
        at = self.p * time
        exact = zero + amount
        if at - self.p < exact < at:
            at = exact  # became ready within this nanosecond: charged at its exact slot
        floor = at - self.capacity
        return (zero if zero > floor else floor) + amount

    def full_at(self, zero: int) -> int:
        """The first whole nanosecond at which the bucket is full, and equal to an absent one."""
        return -(-(zero + self.capacity) // self.p)

    def rescale(self, zero: int, now: int, new: Scale) -> int:
        """The state under a new rate: the level is kept in permits, rounded down, capped by the new burst."""
        level = self.level(zero, now) * new.unit // self.unit
        return new.p * now - min(level, new.capacity)
