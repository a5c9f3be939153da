"""P2, and the long line of P6: many callers at once in one line, and when each starts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

from benchmarks.cases.base import Case, Column
from benchmarks.measure import Log, Row, cpu, milliseconds, now, pacing
from benchmarks.subjects import opened
from benchmarks.subjects.base import Load, Subject

TENANT = "tenant"


async def finish(tasks: list[asyncio.Task[None]], seconds: float) -> None:
    """Wait for all, at most `seconds`; cancel the rest. An error of a waiter is an error of the run."""
    done, pending = await asyncio.wait(tasks, timeout=seconds)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        if not task.cancelled():
            task.result()


class Start:
    """Reads the clock immediately before the first waiter asks."""

    def __init__(self) -> None:
        self.time = 0

    async def first(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the first waiter."""
        self.time = now()
        await work


async def line(subject: Subject, rate: int, waiters: int, cap: float) -> Row:
    """The figures of one line of burst 1.

    Slots that were due before everybody had asked are not counted among the errors: they measure how long it
    takes to create the tasks. They do count in the total, among the inversions and among the early ones.
    """
    log: Log = []
    start = Start()
    begin, loop = cpu(), asyncio.get_running_loop()
    tasks = [loop.create_task(start.first(subject.one(TENANT, log, 0)))]
    tasks += [loop.create_task(subject.one(TENANT, log, number)) for number in range(1, waiters)]
    await asyncio.sleep(0)
    asked = now()
    await finish(tasks, cap)
    row = pacing(log, waiters, start.time, rate, 1, asked)
    row["setup_ms"] = milliseconds(asked - start.time)
    row["cpu_us"] = (cpu() - begin) / 1000 / max(1, len(log))
    return row


def queued(rate: int, waiters: int, name: str, quick: bool) -> Row:
    """A line in a fresh loop."""
    if quick:
        rate, waiters = 2000, 20
    load = Load([TENANT], rate=rate, max_queue=max(1000, waiters))
    cap = 1.0 if quick else max(3.0, 1.3 * waiters / rate)

    async def main() -> Row:
        async with opened(name, load) as subject:
            return await line(subject, rate, waiters, cap)

    return asyncio.run(main())


COLUMNS = (
    Column("total", "total ÷ schedule", ".4f"),
    Column("p50_ms", "slot error p50, ms", ".3f"),
    Column("p99_ms", "p99, ms", ".3f"),
    Column("max_ms", "max, ms", ".3f"),
    Column("inversions", "inversions", worst=True),
    Column("early", "before their slot", worst=True),
    Column("setup_ms", "set-up, ms", ".1f"),
    Column("cpu_us", "CPU per release, µs", ".1f"),
    Column("released", "released"),
)

JUDGED = ("waitline, timerfd", "waitline, loop timer", "ideal, timerfd", "ideal, loop timer")
BESIDE = (
    "waitline submit",
    "aiolimiter",
    "asynciolimiter Limiter",
    "asynciolimiter leaky",
    "pyrate-limiter, buffer 0",
    "pyrate-limiter",
    "throttled-py GCRA",
    "queue + worker task",
)

CASES = tuple(
    Case(
        name=f"queued-{rate}",
        target="P2",
        title=f"1,000 waiters, burst 1, {rate:,}/s: the schedule is {999 / rate:.4g} s",
        measure=partial(queued, rate, 1000),
        judged=JUDGED,
        beside=BESIDE,
        columns=COLUMNS,
        note="Who had not released everybody by 1.3 times the schedule (at least 3 s) was stopped there.",
    )
    for rate in (200, 2000)
)

LONG = Case(
    name="queued-20000",
    target="P6",
    title="20,000 waiters at 5,000/s in one line: the schedule is 4 s",
    measure=partial(queued, 5000, 20_000),
    judged=("waitline, max_running 1,000,000", "ideal", "aiolimiter"),
    beside=("waitline", "asynciolimiter Limiter"),
    columns=COLUMNS,
    note="waitline with `max_queue=20000`: by default a line of 1,000 is full.",
)
