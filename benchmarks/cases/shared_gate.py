"""P13: what a gate that all tenants share costs, where all have a line at it and their weights differ.

The same tenants, releases, pace and shares with the gate and without: without it a tenant's own rate is its
weight; behind it the gate lets through what those rates sum up to, shares that out by weight, and the
tenants' own rates are ten times as high and bind nobody.
"""

from __future__ import annotations

import asyncio

from benchmarks.cases.base import Case, Column
from benchmarks.cases.growth import Population, alone, number_of
from benchmarks.cases.many_tenants import SLOTS
from benchmarks.cases.nobody_waits import names
from benchmarks.cases.queued import finish
from benchmarks.measure import NS, Log, Row, cpu, now
from benchmarks.subjects import OFF, opened
from benchmarks.subjects.base import Load, Subject

GATE, FREE = "waitline, one gate", "waitline, no gate"

TENANTS = 10_000
WEIGHTS = (1, 2, 3, 4, 5)

PER = 2
"""Seconds in which a tenant of weight 1 gets one release: 15,000 a second in all."""

EACH = 3
"""Waiters per tenant, for each unit of its weight: all lines end at the same time, after 6 s."""

PACE = NS // 10_000
"""Nanoseconds between two tenants' first calls, so that no two of them are due together for ever."""

GROUP = 1000
"""Waiters that are made in one turn of the loop: a longer one would be a wake-up that is too late."""


def weight_of(tenant: str) -> int:
    """1 to 5, by the tenant's number."""
    return WEIGHTS[number_of(tenant) % len(WEIGHTS)]


def jain(log: Log, weights: list[int]) -> float:
    """Jain's index of the releases per weight, over the first half of the log."""
    count = [0] * len(weights)
    for _, number in log[: len(log) // 2]:
        count[number] += 1
    shares = [released / weight for released, weight in zip(count, weights, strict=True)]
    return sum(shares) ** 2 / max(1e-9, len(shares) * sum(share * share for share in shares))


async def backlog(subject: Subject, load: Load, cap: float) -> Row:
    """CPU from when every tenant has had its first release until the last of the others."""
    log: Log = []
    weights = [load.weight_of(tenant) for tenant in load.tenants]
    begin, loop = now(), asyncio.get_running_loop()
    first = []
    for number, tenant in enumerate(load.tenants):
        while now() < begin + number * PACE:  # noqa: ASYNC110
            await asyncio.sleep(0)  # the loop's timers are too coarse for this pace
        first.append(loop.create_task(subject.one(tenant, log, number)))
    await finish(first, cap)
    log.clear()
    started, used = now(), cpu()
    tasks: list[asyncio.Task[None]] = []
    most = max(weights)
    for step in range(EACH * most):
        for number, tenant in enumerate(load.tenants):
            # Lines grow in proportion to their weights: none runs dry while others are still being made.
            if step * weights[number] % most < weights[number]:
                tasks.append(loop.create_task(subject.one(tenant, log, number)))
                if not len(tasks) % GROUP:
                    await asyncio.sleep(0)
    await finish(tasks, cap)
    seconds = (cpu() - used) / NS
    return {
        "rate": len(log) / seconds,
        "cpu_us": seconds * 1e6 / max(1, len(log)),
        "seconds": (now() - started) / NS,
        "jain": jain(log, weights),
        "released": len(log),
        "expected": len(tasks),
    }


def tasks(name: str, quick: bool) -> Row:
    """Through the public names: callers that wait in `admit`."""
    tenants = names(20 if quick else TENANTS)
    gated = name.removesuffix(OFF) == GATE
    total = sum(map(weight_of, tenants))
    speed = 20 if quick else 1
    load = Load(
        tenants,
        rate=lambda tenant: speed * weight_of(tenant) * (10 if gated else 1),
        per=PER,
        gate=speed * total if gated else None,
        weight_of=weight_of,
    )

    async def main() -> Row:
        async with opened(SLOTS, load) as subject:
            return await backlog(subject, load, 2.0 if quick else 40.0)

    return asyncio.run(main())


def engine(name: str, quick: bool) -> Row:
    """The engine alone: grant, settle, offer anew."""
    tenants = 50 if quick else TENANTS
    row = alone(lambda: Population(tenants, 2 * tenants, name == GATE, WEIGHTS), quick)
    row["rate"] = 1e6 / ((row["grant_us"] or 0) + (row["offer_us"] or 0))
    return row


CASES = (
    Case(
        name="gate",
        target="P13",
        title="10,000 tenants of weights 1 to 5, 90,000 waiters, 15,000 releases/s: CPU of a shared gate",
        measure=tasks,
        judged=(GATE, FREE),
        beside=(GATE + OFF, FREE + OFF),
        columns=(
            Column("rate", "releases per second of CPU"),
            Column("cpu_us", "CPU per release, µs", ".2f"),
            Column("seconds", "seconds (the schedule is 6)", ".2f"),
            Column("jain", "Jain's index of releases per weight, half-way", ".3f"),
            Column("released", "released"),
        ),
        note="*no gate*: a tenant's own rate is its weight. *one gate*: the gate lets as many through in all "
        "and shares them by weight; the tenants' own rates are ten times as high. Tasks included, with "
        "`max_running=1000000`; the collector is on, but for the rows that say otherwise.",
    ),
    Case(
        name="gate-engine",
        target="P13",
        title="The engine alone, 10,000 tenants of weights 1 to 5 with two waiting jobs each",
        measure=engine,
        judged=(GATE, FREE),
        columns=(
            Column("rate", "grants per second of CPU"),
            Column("grant_us", "CPU per grant and settle, µs", ".2f"),
            Column("offer_us", "CPU per offer, µs", ".2f"),
            Column("waiting", "waiting"),
            Column("grants", "grants measured"),
        ),
        note="As in P6: 10,000 grants per second of virtual time in all, whoever is granted is settled and "
        "offered anew, and the collector is frozen and off.",
    ),
)
