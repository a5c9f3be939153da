"""The bound of start-time fair queueing, over all that tenants got of a gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations

ROUNDING = 1 + Fraction(1, 1000)
"""Weights are scaled to a millionth."""


@dataclass
class Pair:
    """What one tenant got more than another, per weight, since both wait; and how far that went apart."""

    grants: int = 0
    ahead: Fraction = Fraction(0)
    low: Fraction = Fraction(0)
    high: Fraction = Fraction(0)
    worst: Fraction = Fraction(0)

    def add(self, step: Fraction) -> None:
        self.grants += 1
        self.ahead += step
        self.low, self.high = min(self.low, self.ahead), max(self.high, self.ahead)
        self.worst = max(self.worst, self.high - self.low)

    def begin(self) -> None:
        """One of them came back: what was before does not count."""
        self.ahead = self.low = self.high = Fraction(0)


@dataclass
class Shares:
    """|W_f/w_f − W_g/w_g| ≤ l_f/w_f + l_g/w_g over every interval in which both wait at the gate."""

    weights: Mapping[str, float]
    waiting: set[str] = field(default_factory=set)
    largest: Counter[str] = field(default_factory=Counter)
    pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pairs = {pair: Pair() for pair in combinations(sorted(self.weights), 2)}

    def waits(self, tenant: str) -> None:
        """From here on this tenant has jobs that wait."""
        if tenant not in self.waiting:
            self.waiting.add(tenant)
            for names, pair in self.pairs.items():
                if tenant in names:
                    pair.begin()

    def served(self, tenant: str, work: int, more: bool) -> None:
        """A job of a tenant passed, that cost so much; `more` of its jobs wait, or none."""
        self.order.append(tenant)
        self.largest[tenant] = max(work, self.largest[tenant])
        step = self.share(tenant, work)
        for (one, other), pair in self.pairs.items():
            if tenant in {one, other} and self.waiting >= {one, other}:
                pair.add(step if tenant == one else -step)
        if not more:
            self.waiting.discard(tenant)

    def share(self, tenant: str, work: int) -> Fraction:
        """Work of a tenant, per weight."""
        return work / Fraction(str(self.weights[tenant]))

    def check(self, *, errors: Mapping[str, int] | None = None, least: int = 1) -> None:
        """Nobody got ahead by more than the bound, and what `errors` of its estimates could hide.

        `least`: how many grants there were at least to any two while both waited.
        """
        for names, pair in self.pairs.items():
            bound = sum(self.share(name, self.largest[name]) for name in names) * ROUNDING
            bound += sum(self.share(name, (errors or {}).get(name, 0)) for name in names)
            text = f"{' and '.join(names)}: {float(pair.worst)} apart, {float(bound)} is the bound"
            assert pair.worst <= bound, f"{text}; weights {self.weights}, served {' '.join(self.order)}"
            assert pair.grants >= least, f"{names}: {pair.grants} grants while both waited, {self.order}"
