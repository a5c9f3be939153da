"""What calls do while the store is down: the setting, and the share of a quota."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from scheduler.core.quota import DIMENSIONS, Number, Quota, Rate, exact, full_burst, positive
from scheduler.core.signals import Signal, Upstream


@dataclass(frozen=True, slots=True)
class Outage:
    """What `admit` and `submit` do while the store cannot be reached.

    `share` None: they are refused, with the reason ``"store_down"``. A number above 0, at most 1: `admit`
    grants that share of each limit in this process, of tenants and of gates, and the store is charged
    afterwards; with N processes choose 1/N or less. `submit` and `enqueue` are refused even so, since a job
    that is nowhere would be lost. `patience`: seconds for which the store must have been out of reach before
    any of it.
    """

    share: Number | None = None
    patience: float = 2.0

    def __post_init__(self) -> None:
        if self.share is not None and positive("share", self.share) > 1:
            raise ValueError(f"share: must be at most 1, got {self.share!r}")
        positive("patience", self.patience)

    @classmethod
    def refuse(cls, *, patience: float = 2.0) -> Outage:
        """Refuse all."""
        return cls(None, patience)

    @classmethod
    def admit(cls, share: Number, *, patience: float = 2.0) -> Outage:
        """Let `admit` have a share of each limit."""
        exact("share", share)
        return cls(share, patience)

    @property
    def _part(self) -> Fraction:
        return Fraction(1) if self.share is None else exact("share", self.share)

    def slots(self, slots: int) -> int:
        """The share of slots: rounded down, but at least 1."""
        return max(1, math.floor(slots * self._part))

    def permits(self, permits: Mapping[str, int]) -> dict[str, int]:
        """The share of whole permits by name: rounded down, but at least 1 of what there is."""
        return {name: min(some, self.slots(some)) for name, some in permits.items()}

    def signal(self, signal: Signal) -> Signal:
        """What an upstream says to all, for a share of it."""
        return replace(signal, limits=self.permits(signal.limits), remaining=self.permits(signal.remaining))

    def upstream(self, upstream: Upstream) -> Upstream:
        """The share of what is given for a gate."""
        ceiling = None if upstream.ceiling is None else self.quota(upstream.ceiling)
        return Upstream(self.quota(upstream.quota), ceiling=ceiling, spend_probe=upstream.spend_probe)

    def quota(self, quota: Quota) -> Quota:
        """The share of a quota: its rates exactly, bursts and slots rounded down, but at least 1."""
        share = self._part
        rates = {
            name: Rate(
                exact(name, rate.permits) * share,
                per=exact(name, rate.per),
                burst=self.slots(full_burst(name, rate)),
            )
            for name in DIMENSIONS
            if (rate := getattr(quota, name)) is not None
        }
        slots = quota.concurrency
        return Quota(
            rates.pop("requests", None),
            **rates,
            concurrency=None if slots is None else self.slots(slots),
            weight=quota.weight,
        )
