"""Scenarios with a right answer: what a caller meets besides speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks.cases.base import Case, Column
from benchmarks.cases.queued import TENANT, Start, finish
from benchmarks.measure import NS, Log, Row, errors, now
from benchmarks.subjects import opened
from benchmarks.subjects.base import Load, Subject

RATE = 20
BURST = 5
NEWCOMER = 99
STEP = 0.01
"""Seconds by which two times to come back must differ to count as two."""

Scenario = Callable[[Subject, bool], Awaitable[tuple[float, bool]]]
"""Returns its figure, and whether the answer is the right one."""


async def example(subject: Subject, quick: bool) -> tuple[float, bool]:
    """45 callers at once at 20/s with a burst of 5: the last is due after 2 s. Figure: mean lateness, ms."""
    callers = BURST + 2 if quick else 45
    log: Log = []
    start = Start()
    tasks = [asyncio.create_task(start.first(subject.one(TENANT, log, 0)))]
    tasks += [asyncio.create_task(subject.one(TENANT, log, number)) for number in range(1, callers)]
    await finish(tasks, 10.0)
    late = errors([moment for moment, _ in log], start.time, RATE, BURST, 0)
    total, due = log[-1][0] - start.time, (callers - BURST) * NS // RATE
    return sum(late) / len(late) / 1e6, len(log) == callers and total <= 1.01 * due


async def emptied(subject: Subject) -> Log:
    """Take the whole burst; return an empty log."""
    log: Log = []
    for number in range(BURST):
        await subject.one(TENANT, log, number)
    log.clear()
    return log


async def large(subject: Subject, quick: bool) -> tuple[float, bool]:
    """A call for 5 permits, then calls for one at 22/s. Figure: how many of them went before it."""
    log = await emptied(subject)
    tasks = [asyncio.create_task(subject.large(TENANT, BURST, log, 0))]
    for number in range(1, 3 if quick else 55):
        await asyncio.sleep(1 / (RATE + 2))
        tasks.append(asyncio.create_task(subject.one(TENANT, log, number)))
        if tasks[0].done():
            break
    order = [number for _, number in log]
    await finish(tasks, 0.5)
    before = order.index(0) if 0 in order else len(order)
    return before, before == 0


async def newcomer(subject: Subject, _: bool) -> tuple[float, bool]:
    """Five wait; the loop is busy while a permit falls due; somebody new asks. Figure: its place."""
    log = await emptied(subject)
    waiting = [asyncio.create_task(subject.one(TENANT, log, number)) for number in range(5)]
    await asyncio.sleep(0)
    time.sleep(1.2 / RATE)  # noqa: ASYNC251 - the busy turn of the loop is the point
    await asyncio.wait_for(subject.one(TENANT, log, NEWCOMER), 5)
    await finish(waiting, 5.0)
    place = [number for _, number in log].index(NEWCOMER) + 1
    return place, place == 6


async def hopeless(subject: Subject, quick: bool) -> tuple[float, bool]:
    """0.5 s allowed, 10 s needed. Figure: milliseconds until the caller is told."""
    await subject.one(TENANT, [], 0)
    begin = now()
    await subject.within(TENANT, 0.05 if quick else 0.5)
    told = (now() - begin) / 1e6
    return told, told < 10


async def retry_times(subject: Subject, _: bool) -> tuple[float, bool]:
    """Eight refused one after the other at 2/s. Figure: how many different times they got."""
    times = await subject.retry_times(TENANT, BURST + 8)
    different = len({round(moment / STEP) for moment in times})
    return different, len(times) == 8 == different


def scene(scenario: Scenario, load: Load, name: str, quick: bool) -> Row:
    """One scenario in a fresh loop."""

    async def main() -> Row:
        async with opened(name, load) as subject:
            figure, right = await scenario(subject, quick)
            return {"figure": figure, "right": float(right)}

    return asyncio.run(main())


PEERS = (
    "aiolimiter",
    "asynciolimiter Limiter",
    "asynciolimiter leaky",
    "pyrate-limiter",
    "pyrate-limiter, buffer 0",
    "throttled-py GCRA",
    "queue + worker task",
)

FULL = Load([TENANT], RATE, burst=BURST)

SCENES: tuple[tuple[str, str, Scenario, Load, Column], ...] = (
    (
        "example",
        "45 callers at 20/s, burst 5: ends within 1 % of 2 s",
        example,
        FULL,
        Column("figure", "mean lateness, ms", ",.1f"),
    ),
    (
        "large",
        "a large request is not overtaken by small ones",
        large,
        FULL,
        Column("figure", "went before it"),
    ),
    (
        "newcomer",
        "a newcomer goes behind five who wait",
        newcomer,
        FULL,
        Column("figure", "its place"),
    ),
    (
        "hopeless",
        "a hopeless deadline is told at once",
        hopeless,
        Load([TENANT], 1, per=10),
        Column("figure", "told after, ms", ",.1f"),
    ),
    (
        "retry",
        "eight refused callers get eight times",
        retry_times,
        Load([TENANT], 2, burst=BURST),
        Column("figure", "different times"),
    ),
)

CASES = tuple(
    Case(
        name=f"behaviour-{name}",
        target="behaviour",
        title=title,
        measure=partial(scene, scenario, load),
        judged=("waitline", "ideal"),
        beside=PEERS,
        columns=(figure, Column("right", "right")),
        most=1,
    )
    for name, title, scenario, load, figure in SCENES
)
