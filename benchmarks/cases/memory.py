"""P4: bytes of a tenant that is idle, of one that could be forgotten, and of a waiter.

Bytes are what the interpreter says it allocated (tracemalloc), which is exact and leaves nothing out that the
library holds in Python; the process's resident memory is measured beside it, first and without tracemalloc.
The names of the tenants exist beforehand and are not counted.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable

from benchmarks.cases.base import Case, Column
from benchmarks.cases.nobody_waits import names
from benchmarks.measure import Log, Row, resident
from benchmarks.subjects import opened
from benchmarks.subjects.base import Load

FADING = 3.0
"""Seconds given to forget a tenant whose buckets are full again."""

Memory = Callable[[], int]


def traced() -> int:
    """Bytes allocated through Python and still in use."""
    return tracemalloc.get_traced_memory()[0]


async def grown(memory: Memory, work: Awaitable[None]) -> int:
    """How much more memory is in use after the work than before."""
    gc.collect()
    before = memory()
    await work
    gc.collect()
    return memory() - before


async def twice(measure: Callable[[Memory], Awaitable[float]]) -> Row:
    """Measure resident memory, then traced bytes."""
    rss = await measure(resident)
    tracemalloc.start()
    try:
        return {"bytes": await measure(traced), "rss": rss}
    finally:
        tracemalloc.stop()


def kept(name: str, quick: bool) -> Row:
    """Tenants that took one of five permits, at one per hour: their buckets will not be full for long."""
    load = Load(names(200 if quick else 50_000), rate=1, per=3600, burst=5)

    async def measure(memory: Memory) -> float:
        gc.collect()
        before = memory()
        async with opened(name, load) as subject:
            await subject.passes(load.tenants)
            gc.collect()
            return (memory() - before) / len(load.tenants)

    return asyncio.run(twice(measure))


def evicted(name: str, quick: bool) -> Row:
    """Tenants that were touched once and have full buckets again.

    Two waves of different tenants; what the second adds is the figure, since a first wave also pays for what
    any number of tenants needs, and since an allocator keeps pages that it may use again.
    """
    count = 200 if quick else 100_000
    tenants = names(2 * count)
    load = Load(tenants, rate=10, burst=5)

    async def measure(memory: Memory) -> float:
        async with opened(name, load) as subject:

            async def wave(part: list[str]) -> None:
                await subject.passes(part)
                await asyncio.sleep(0.1 if quick else FADING)

            await grown(memory, wave(tenants[:count]))
            return await grown(memory, wave(tenants[count:])) / count

    return asyncio.run(twice(measure))


def waiter(name: str, quick: bool) -> Row:
    """Waiters in lines of 1,000, less tasks that wait for a bare future in one coroutine."""
    lines, length = (2, 50) if quick else (10, 1000)
    load = Load(names(lines), rate=1, per=3600)

    async def bare(_: str, log: Log, number: int) -> None:
        await asyncio.get_running_loop().create_future()
        log.append((0, number))

    async def parked(memory: Memory, one: Callable[[str, Log, int], Awaitable[None]]) -> float:
        log: Log = []
        tasks: list[asyncio.Future[None]] = []

        async def park() -> None:
            tasks.extend(
                asyncio.ensure_future(one(tenant, log, n)) for n in range(length) for tenant in load.tenants
            )
            for _ in range(3):
                await asyncio.sleep(0)

        size = await grown(memory, park())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return size / len(tasks)

    async def measure(memory: Memory) -> float:
        async with opened(name, load) as subject:
            await parked(memory, bare)  # asyncio's own tables grow once and stay
            plain = await parked(memory, bare)
            return await parked(memory, subject.one) - plain

    return asyncio.run(twice(measure))


COLUMNS = (Column("bytes", "bytes"), Column("rss", "resident bytes"))
PEERS = ("aiolimiter", "asynciolimiter Limiter", "asynciolimiter leaky", "throttled-py GCRA")

CASES = (
    Case(
        name="tenant-evicted",
        target="P4",
        title="Bytes left of a tenant that was touched once and is idle, of 100,000",
        measure=evicted,
        judged=("waitline",),
        columns=COLUMNS,
        most=1,
        note="What a second wave of 100,000 other tenants leaves behind, per tenant.",
    ),
    Case(
        name="tenant-kept",
        target="P4",
        title="Bytes of an idle tenant whose bucket is not full yet",
        measure=kept,
        judged=("waitline", "ideal"),
        beside=(*PEERS, "pyrate-limiter, buffer 0"),
        columns=COLUMNS,
        most=1,
    ),
    Case(
        name="waiter",
        target="P4",
        title="Bytes of a waiter above its bare task",
        measure=waiter,
        judged=("waitline", "waitline submit", "ideal"),
        beside=(*PEERS, "queue + worker task"),
        columns=COLUMNS,
        most=1,
        note="A bare task waits for a future in one coroutine.",
    ),
)
