"""P1: nobody waits. The cost of a call that is granted at once, and of one that is refused at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from statistics import median

from benchmarks.cases.base import Case, Column
from benchmarks.measure import NS, Row, cpu
from benchmarks.subjects import opened
from benchmarks.subjects.base import Load

CALLS = 10_000
SECONDS = 0.3


async def per_call(
    ask: Callable[[Sequence[str]], Awaitable[None]], tenants: Sequence[str], seconds: float
) -> Row:
    """Nanoseconds of CPU per call, the median over rounds of `CALLS` calls in shuffled order.

    The loop never sleeps in here, so CPU time is the time, less what other programs took.
    """
    calls = list(tenants) * max(1, CALLS // len(tenants))
    random.Random(1).shuffle(calls)
    await ask(tenants)  # every tenant has been seen
    rounds: list[float] = []
    end = cpu() + seconds * NS
    while not rounds or cpu() < end:
        begin = cpu()
        await ask(calls)
        rounds.append((cpu() - begin) / len(calls))
    return {"ns": median(rounds), "calls": len(rounds) * len(calls)}


def names(count: int) -> list[str]:
    """Tenants."""
    return [f"tenant-{number}" for number in range(count)]


def granted(tenants: int, subject: str, quick: bool) -> Row:
    """Calls that find a permit: a bucket that nobody can empty."""

    async def main() -> Row:
        load = Load(names(min(tenants, 20) if quick else tenants), rate=NS, burst=NS)
        async with opened(subject, load) as limiter:
            return await per_call(limiter.passes, load.tenants, 0 if quick else SECONDS)

    return asyncio.run(main())


def refused(tenants: int, subject: str, quick: bool) -> Row:
    """Calls that find none: one permit per hour, which the first round took."""

    async def main() -> Row:
        load = Load(names(min(tenants, 20) if quick else tenants), rate=1, per=3600, strict=True)
        async with opened(subject, load) as limiter:
            return await per_call(limiter.refusals, load.tenants, 0 if quick else SECONDS)

    return asyncio.run(main())


COLUMNS = (Column("ns", "ns per call"),)

GRANTED = ("waitline", "waitline submit", "ideal", "ideal submit", "aiolimiter", "aiolimiter + handler")
GRANTED_BESIDE = (
    "asynciolimiter leaky",
    "asynciolimiter Limiter",
    "throttled-py GCRA",
    "pyrate-limiter",
    "pyrate-limiter, buffer 0",
    "queue + worker task",
)
REFUSED = ("waitline", "waitline submit", "ideal", "throttled-py GCRA")
REFUSED_BESIDE = (
    "aiolimiter",
    "asynciolimiter leaky",
    "asynciolimiter Limiter",
    "pyrate-limiter",
    "queue + worker task",
)

CASES = tuple(
    Case(
        name=f"{kind}-{tenants}",
        target="P1",
        title=f"Nobody waits: {title}, {tenants:,} tenant{'s' if tenants > 1 else ''}",
        measure=partial(measure, tenants),
        judged=judged,
        beside=beside,
        columns=COLUMNS,
        note=note,
    )
    for kind, title, measure, judged, beside, note in (
        (
            "granted",
            "granted at once",
            granted,
            GRANTED,
            GRANTED_BESIDE,
            "`waitline` is `async with scheduler.admit(tenant)`.",
        ),
        (
            "refused",
            "refused at once, with the time to come back",
            refused,
            REFUSED,
            REFUSED_BESIDE,
            "waitline raises `ErrRateLimited`; throttled-py returns a result, the ideal a number.",
        ),
    )
    for tenants in (1, 10_000)
)
