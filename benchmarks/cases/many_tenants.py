"""P3: many tenants, each with a line: what a release costs, and whether it comes on time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from benchmarks.cases.base import Case, Column
from benchmarks.cases.nobody_waits import names
from benchmarks.cases.queued import Start, finish
from benchmarks.measure import NS, Log, Row, cpu, errors, milliseconds, now, percentile
from benchmarks.subjects import OFF, opened
from benchmarks.subjects.base import Load, Subject

SLOTS = "waitline, max_running 1,000,000"

SETTLING = NS // 5
"""Nanoseconds after the set-up in which slots are not judged: its backlog is still being worked off."""

JUDGED_FROM = 3 * NS
"""Nanoseconds from the first call before which no slot is judged, however quick the set-up was: without it a
subject that is slow to set up would have its hardest slots left out."""

PACE = NS // 50_000
"""Nanoseconds from one tenant's first call to the next one's: all subjects get the same phases. Were they
created as fast as each can, a subject that is quick to set up sees its releases fall due in heaps, and a
heap of releases costs one wake-up of the loop instead of one each."""


async def releases(subject: Subject, tenants: list[str], each: int) -> Row:
    """CPU per release of `each` waiters per tenant, tasks included; all buckets are empty at the start."""
    log: Log = []
    for tenant in tenants:
        await subject.one(tenant, log, 0)
    log.clear()
    begin, started, loop = cpu(), now(), asyncio.get_running_loop()
    tasks = [loop.create_task(subject.one(tenant, log, n)) for n in range(each) for tenant in tenants]
    await finish(tasks, 12.0)
    count = len(log)
    return {
        "cpu_us": (cpu() - begin) / 1000 / max(1, count),
        "seconds": (now() - started) / NS,
        "released": count,
        "expected": len(tasks),
    }


def thousand(name: str, quick: bool) -> Row:
    """1,000 tenants × 20 waiters at 20/s each: 20,000 releases in a second."""
    tenants, each = (10, 2) if quick else (1000, 20)
    load = Load(names(tenants), rate=20)

    async def main() -> Row:
        async with opened(name, load) as subject:
            return await releases(subject, list(load.tenants), each)

    return asyncio.run(main())


async def create(
    subject: Subject, tenants: list[str], each: int, logs: list[Log], starts: list[Start]
) -> list[asyncio.Task[None]]:
    """Create `each` waiters per tenant, round by round; the first round at a fixed pace."""
    begin, loop = now(), asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    for index, (tenant, log, start) in enumerate(zip(tenants, logs, starts, strict=True)):
        while now() < begin + index * PACE:  # noqa: ASYNC110
            await asyncio.sleep(0)  # the loop's timers are too coarse for this pace
        tasks.append(loop.create_task(start.first(subject.one(tenant, log, 0))))
    await asyncio.sleep(0)
    for number in range(1, each):
        for tenant, log in zip(tenants, logs, strict=True):
            tasks.append(loop.create_task(subject.one(tenant, log, number)))
        await asyncio.sleep(0)
    return tasks


async def crowd(subject: Subject, load: Load, each: int, cap: float, judged_from: int) -> Row:
    """CPU and slot errors of `each` waiters per tenant, whose schedule starts when its first caller asks."""
    tenants = list(load.tenants)
    logs: list[Log] = [[] for _ in tenants]
    starts = [Start() for _ in tenants]
    begin, created = cpu(), now()
    tasks = await create(subject, tenants, each, logs, starts)
    asked, setup = now(), cpu() - begin
    await finish(tasks, cap)
    used = cpu() - begin
    after = max(asked + SETTLING, created + judged_from)
    late = [
        error
        for tenant, log, start in zip(tenants, logs, starts, strict=True)
        for error in errors([time for time, _ in log], start.time, load.rate_of(tenant), 1, after)
    ]
    count = sum(map(len, logs))
    return {
        "setup_s": (asked - created) / NS,
        "setup_cpu_s": setup / NS,
        "cpu_s": used / NS,
        "cpu_us": used / 1000 / max(1, count),
        "p50_ms": milliseconds(percentile(late, 0.5)),
        "p99_ms": milliseconds(percentile(late, 0.99)),
        "max_ms": milliseconds(max(late, default=None)),
        "released": count,
        "expected": len(tasks),
    }


def one_to_five(scale: int) -> Callable[[str], int]:
    """Rates of 1 to 5 permits a second, by the tenant's number."""
    return lambda tenant: scale * (1 + int(tenant.rpartition("-")[2]) % 5)


def ten_thousand(name: str, quick: bool) -> Row:
    """10,000 tenants × 10 waiters at 1 to 5/s."""
    load = Load(names(10 if quick else 10_000), rate=one_to_five(5 if quick else 1))

    async def main() -> Row:
        async with opened(name, load) as subject:
            return await crowd(
                subject, load, 3 if quick else 10, 2.0 if quick else 15.0, 0 if quick else JUDGED_FROM
            )

    return asyncio.run(main())


THOUSAND = Case(
    name="release-cpu",
    target="P3",
    title="1,000 tenants × 20 waiters at 20/s each: CPU per queued release, its task included",
    measure=thousand,
    judged=(SLOTS, "ideal", "aiolimiter", "asynciolimiter Limiter"),
    beside=(
        "waitline",
        "waitline submit",
        "ideal submit",
        "asynciolimiter leaky",
        "pyrate-limiter, buffer 0",
        "throttled-py GCRA",
        "queue + worker task",
    ),
    columns=(
        Column("cpu_us", "CPU per release, µs", ".2f"),
        Column("seconds", "seconds (the schedule is 1)", ".3f"),
        Column("released", "released"),
    ),
    note="The collector is on.",
)

TEN_THOUSAND = Case(
    name="crowd",
    target="P3",
    title="10,000 tenants × 10 waiters at 1 to 5/s: 100,000 waiters",
    measure=ten_thousand,
    judged=(SLOTS, "ideal", "aiolimiter", "asynciolimiter Limiter", SLOTS + OFF, "ideal" + OFF),
    beside=("waitline", "queue + worker task"),
    columns=(
        Column("cpu_us", "CPU per release, µs", ".2f"),
        Column("cpu_s", "CPU, s", ".2f"),
        Column("setup_s", "set-up, s", ".2f"),
        Column("p50_ms", "slot error p50, ms", ".1f"),
        Column("p99_ms", "p99, ms", ".1f"),
        Column("max_ms", "max, ms", ".0f"),
        Column("released", "released"),
    ),
    note="The collector is on, but for the rows that say otherwise. Slot errors are of the slots due after 3 "
    "s and after the set-up.",
)

CASES = (THOUSAND, TEN_THOUSAND)
