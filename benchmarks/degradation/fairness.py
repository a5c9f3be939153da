"""Jain's index over the tenants that had work waiting all the time.

R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of Fairness and Discrimination for Resource Allocation in
Shared Computer Systems", DEC TR-301, 1984: (Σx)² / (n · Σx²), which is 1 if all got the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.degradation.account import Offer
from benchmarks.degradation.journal import Journal

Span = tuple[int, int]


def jain(values: Sequence[float]) -> float | None:
    """The index of some shares; None of nothing."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None


def joined(spans: list[Span]) -> list[Span]:
    """Overlapping spans as one."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def backlogs(journal: Journal, least: int) -> dict[str, list[Span]]:
    """When each tenant had a prompt waiting, without any break; times of less than `least` are left out."""
    waits: dict[str, list[Span]] = defaultdict(list)
    for fate in journal.fates.values():
        end = fate.ended if fate.begun is None else fate.begun
        if end is not None and end > fate.submitted:
            waits[fate.prompt.tenant].append((fate.submitted, end))
    return {
        tenant: long
        for tenant, spans in waits.items()
        if (long := [span for span in joined(spans) if span[1] - span[0] >= least])
    }


@dataclass(frozen=True)
class Shares:
    """A time in which several tenants were backlogged throughout, and who they were."""

    start: int
    end: int
    tenants: tuple[str, ...]

    @classmethod
    def of(cls, journal: Journal, least: int) -> Shares | None:
        """The time in which tenants × seconds is largest, of at least `least` nanoseconds.

        In a shorter time the size of a single prompt decides what a tenant got. None if no two tenants were
        backlogged for so long at once.
        """
        spans = backlogs(journal, least)
        every = [span for found in spans.values() for span in found]
        best: Shares | None = None
        for start in sorted({span[0] for span in every}):
            for end in sorted({span[1] for span in every}):
                if end - start < least:
                    continue
                tenants = tuple(
                    tenant
                    for tenant, found in spans.items()
                    if any(span[0] <= start and end <= span[1] for span in found)
                )
                shares = cls(start, end, tenants)
                if len(tenants) > 1 and (best is None or shares.size > best.size):
                    best = shares
        return best

    @property
    def size(self) -> int:
        """Tenants × nanoseconds."""
        return len(self.tenants) * (self.end - self.start)

    def served(self, journal: Journal, offer: Offer, expected: bool = False) -> list[float]:
        """Seconds of the account that each got; with `expected`, by what was estimated beforehand."""
        got = dict.fromkeys(self.tenants, 0.0)
        for at, prompt in journal.admissions:
            if self.start <= at < self.end and prompt.tenant in got:
                amounts: tuple[int, ...] = prompt.amounts
                guessed = journal.fates[prompt.number].estimate
                if expected and guessed is not None:
                    amounts = (1, prompt.guessed_input, guessed)
                got[prompt.tenant] += offer.cost(amounts)
        return list(got.values())

    def jain(self, journal: Journal, offer: Offer, expected: bool = False) -> float | None:
        """Jain's index of what they got."""
        return jain(self.served(journal, offer, expected))
