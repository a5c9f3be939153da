"""P6: does a grant cost more when there are more tenants, or more waiting jobs? The engine alone.

The collector is frozen and off in here: a full collection walks all objects of the population, which is a
property of the interpreter and of its thresholds, not of the engine, and it would hide what is asked.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from time import thread_time_ns

from benchmarks.cases.base import Case, Column
from benchmarks.cases.queued import LONG
from benchmarks.measure import NS, Row
from scheduler.core.engine import Engine
from scheduler.core.entry import Entry, State
from scheduler.core.policy import Policy
from scheduler.core.quota import Quota, Rate

TOTAL = 10_000
"""Grants per second of virtual time, over all tenants together, whatever their number."""

BATCH = 20
"""Grants per step of the clock: 2 ms."""

ROUNDS = 5
GRANTS = 10_000
"""Grants in each round: the figure is the median of the rounds."""

WARM = 3 * NS
"""Virtual nanoseconds before the measurement, in which the engine looks after tenants that are new."""

ENOUGH = 1 << 40
SIZES = tuple(10**power for power in range(2, 7))
POLICY = Policy(max_wait=None, max_queue=ENOUGH)


def number_of(tenant: str) -> int:
    """The number at the end of a tenant's name."""
    return int(tenant.rpartition("-")[2])


class Population:
    """Tenants with waiting jobs, in a steady state: whoever is granted is settled and offered anew.

    `weights`: what the tenants weigh, in turn. Their shares of the grants are in proportion to that, by the
    gate's choice or by their own rates.
    """

    def __init__(self, tenants: int, jobs: int, gated: bool, weights: Sequence[int] = (1,)) -> None:
        # Without a gate the tenants' own rates bind; with one they are ten times what the gate lets through.
        each = TOTAL * (10 if gated else 1) * len(weights)
        own = [Quota(Rate(each * weight, per=tenants * sum(weights)), weight=weight) for weight in weights]
        gate = Quota(Rate(TOTAL)) if gated else Quota()
        self.engine = Engine(0, lambda name: own[number_of(name) % len(own)], {"": gate}, ENOUGH)
        self.engine.max_waiting = ENOUGH
        self.now = 0
        self.longest = 0
        self._fill([f"tenant-{number}" for number in range(tenants)], jobs // tenants, spread=not gated)

    def _fill(self, tenants: list[str], each: int, spread: bool) -> None:
        """One job more than shall wait, per tenant; spread, so that later no two are due at once."""
        for tenant in tenants:
            for _ in range(each + 1):
                self._offer(tenant)
            for entry in self._take():
                self._offer(entry.owner.name)
            self.now += NS // TOTAL if spread else 0

    def _offer(self, tenant: str) -> None:
        entry = Entry(POLICY)
        self.engine.offer(self.now, tenant, "", entry)
        if entry.state is State.RUNNING:
            self.engine.settle(self.now, entry)

    def _take(self) -> list[Entry]:
        moved, self.engine.moved = self.engine.moved, []
        for entry in moved:
            self.engine.settle(self.now, entry)
        return moved

    def measured(self, steps: int) -> tuple[float, float]:
        """Microseconds of CPU per grant, and per offer, over some steps."""
        taken = [self.step() for _ in range(steps)]
        grants, granting, offering = (sum(part) for part in zip(*taken, strict=True))
        return granting / 1000 / max(1, grants), offering / 1000 / max(1, grants)

    def step(self) -> tuple[int, int, int]:
        """Let time pass, settle what was granted, and offer as much again: grants, and what both took."""
        engine = self.engine
        self.now += BATCH * NS // TOTAL
        begin = thread_time_ns()
        engine.advance(self.now)
        moved = self._take()
        middle = thread_time_ns()
        for entry in moved:
            engine.offer(self.now, entry.owner.name, "", Entry(POLICY))
        end = thread_time_ns()
        self.longest = max(self.longest, end - begin)
        return len(moved), middle - begin, end - middle


def grow(shape: Callable[[int], tuple[int, int]], gated: bool, size: str, quick: bool) -> Row:
    """CPU per grant and per offer in a population of this size."""
    tenants, jobs = shape(min(int(size.replace(",", "")), 1000 if quick else ENOUGH))
    return alone(lambda: Population(tenants, jobs, gated), quick)


def alone(populate: Callable[[], Population], quick: bool) -> Row:
    """CPU per grant and per offer in a population."""
    gc.collect()
    gc.freeze()
    gc.disable()
    population = populate()
    begin, warm = population.now, 0 if quick else WARM
    while population.now <= begin + warm:
        population.step()
    rounds = [population.measured((20 if quick else GRANTS) // BATCH) for _ in range(ROUNDS)]
    gc.enable()
    return {
        "grant_us": median(granting for granting, _ in rounds),
        "offer_us": median(offering for _, offering in rounds),
        "longest_ms": population.longest / 1e6,
        "grants": ROUNDS * (20 if quick else GRANTS),
        "waiting": population.engine.waiting,
    }


def by_tenants(size: int) -> tuple[int, int]:
    """So many tenants, two waiting jobs each."""
    return size, 2 * size


def by_jobs(size: int) -> tuple[int, int]:
    """So many waiting jobs, of one tenant."""
    return 1, size


COLUMNS = (
    Column("grant_us", "CPU per grant and settle, µs", ".2f"),
    Column("offer_us", "CPU per offer, µs", ".2f"),
    Column("longest_ms", "longest step, warming included, ms", ".1f", worst=True),
    Column("waiting", "waiting"),
    Column("grants", "grants measured"),
)

CASES = (
    *(
        Case(
            name=f"growth-{axis}{'-gate' if gated else ''}",
            target="P6",
            title=f"The engine alone, {what}, {'behind a shared gate' if gated else 'without a gate'}",
            measure=partial(grow, shape, gated),
            judged=tuple(f"{size:,}" for size in SIZES),
            columns=COLUMNS,
            most=1,
            note="10,000 grants per second of virtual time in all, 20 per step; whoever is granted is "
            "settled and offered anew. The collector is frozen and off.",
        )
        for axis, what, shape in (
            ("tenants", "by tenants with two waiting jobs each", by_tenants),
            ("jobs", "by waiting jobs of one tenant", by_jobs),
        )
        for gated in (False, True)
    ),
    LONG,
)
