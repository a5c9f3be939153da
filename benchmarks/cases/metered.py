"""P15: what it costs to count tokens: three buckets, reserved and settled, against requests only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from benchmarks.cases.base import Case, Column
from benchmarks.cases.nobody_waits import SECONDS, names, per_call
from benchmarks.measure import NS, Row
from benchmarks.subjects.base import PROMPT
from scheduler import Cost, Job, Quota, Rate, Scheduler, Usage

THREE, ONE = "waitline, three buckets", "waitline, requests only"
NAMED = "waitline, requests only, cost named"
UNTOLD = "waitline, requests only, usage not told"

BUCKET = Rate(NS, burst=NS)
"""Nobody can empty it."""

REQUESTS = Quota(BUCKET)
TOKENS = Quota(BUCKET, input_tokens=BUCKET, output_tokens=BUCKET)


async def told(job: Job) -> None:
    """Say what the call used, as a handler does that has seen the answer."""
    job.settle(Usage(1, 8, 150))


async def untold(_: Job) -> None:
    """Do nothing."""


async def priced(scheduler: Scheduler, tenants: Sequence[str]) -> None:
    """Calls that name their cost and tell their usage."""
    for tenant in tenants:
        async with scheduler.admit(tenant, cost=Cost(1, 500, 200)) as grant:
            grant.settle(Usage(1, 480, 150))


async def settled(scheduler: Scheduler, tenants: Sequence[str]) -> None:
    """Calls that tell their usage; requests need no estimate."""
    for tenant in tenants:
        async with scheduler.admit(tenant) as grant:
            grant.settle(Usage(1, 480, 150))


async def bare(scheduler: Scheduler, tenants: Sequence[str]) -> None:
    """Calls that do neither."""
    for tenant in tenants:
        async with scheduler.admit(tenant):
            pass


async def prompts(scheduler: Scheduler, tenants: Sequence[str]) -> None:
    """Prompts to a handler, at no named cost: where tokens are limited they are estimated."""
    for tenant in tenants:
        await scheduler.submit(tenant, PROMPT)


Handler = Callable[[Job], Awaitable[None]]
Calls = Callable[[Scheduler, Sequence[str]], Awaitable[None]]
Ways = dict[str, tuple[Quota, Handler, Calls]]

BY_COST: Ways = {
    THREE: (TOKENS, untold, priced),
    ONE: (REQUESTS, untold, settled),
    NAMED: (REQUESTS, untold, priced),
    UNTOLD: (REQUESTS, untold, bare),
}

BY_ESTIMATE: Ways = {
    THREE: (TOKENS, told, prompts),
    ONE: (REQUESTS, told, prompts),
    UNTOLD: (REQUESTS, untold, prompts),
}


def calls(ways: Ways, tenants: int, name: str, quick: bool) -> Row:
    """CPU per call that is granted at once."""
    quota, handler, ask = ways[name]

    async def main() -> Row:
        async with Scheduler(handler, quotas=quota) as scheduler:
            seen = names(min(tenants, 20) if quick else tenants)
            return await per_call(partial(ask, scheduler), seen, 0 if quick else SECONDS)

    return asyncio.run(main())


CASES = tuple(
    Case(
        name=f"{kind}-{tenants}",
        target="P15",
        title=f"{title}, {tenants:,} tenant{'s' if tenants > 1 else ''}",
        measure=partial(calls, ways, tenants),
        judged=(THREE, ONE),
        beside=tuple(name for name in ways if name not in (THREE, ONE)),
        columns=(Column("ns", "ns per call"),),
        note=note,
    )
    for kind, ways, title, note in (
        (
            "metered-cost",
            BY_COST,
            "Reserve and settle, costs named",
            (
                "`async with scheduler.admit(tenant, cost=Cost(…)) as grant: grant.settle(Usage(…))`, nobody "
                "waits. *requests only* tells its usage too, but names no cost: one request is what it is "
                "charged. The values are made for each call."
            ),
        ),
        (
            "metered-estimate",
            BY_ESTIMATE,
            "Reserve and settle, costs estimated",
            (
                "`await scheduler.submit(tenant, prompt)`, whose handler says `job.settle(Usage(…))`, nobody "
                "waits. With three buckets the short prompt is counted, its output estimated, and the "
                "estimate learns from what was used."
            ),
        ),
    )
    for tenants in (1, 10_000)
)
