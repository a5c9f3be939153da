"""P11: whether durable jobs start when their buckets let them."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

import asyncpg

from benchmarks.cases.base import Case, Column
from benchmarks.durable.crew import Crew
from benchmarks.durable.measuring import PEERS, installed, within_limit
from benchmarks.durable.subjects.base import Load
from benchmarks.measure import NS, NotPossible, Row, milliseconds, now, percentile, slot

EACH = 10
GROUP = 100
"""Tenants that arrive together, with all their jobs; the next ones when these are committed."""

SETTLING = NS // 5
"""Nanoseconds after the set-up in which slots are not judged: its backlog is still being worked off."""

STEPPED = 1_000_000
"""Nanoseconds by which the clock may be moved during a run."""

ARRIVALS = {
    "waitline": "select tenant, min(arrival) as first from waitline.job group by tenant",
    "prototype": "select tenant, min(arrival) as first from job group by tenant",
}
"""When a tenant's first job was accepted, by the server's clock: its bucket was full, the schedule begins."""


def offset() -> int:
    """What the wall clock, which the server reads, is ahead of the one that measures."""
    return time.time_ns() - now()


def lateness(starts: list[int], first: int, rate: int) -> list[tuple[int, int]]:
    """(slot, nanoseconds after it) of the k-th start; before its slot counts as negative."""
    return [
        (due, moment - due) for number, moment in enumerate(starts) for due in [slot(first, rate, 1, number)]
    ]


async def paced(name: str, quick: bool) -> Row:
    """Tenants at 1 to 5 per second, burst 1, ten jobs each, one worker."""
    if name not in ARRIVALS:
        raise NotPossible("no bucket per tenant")
    load = Load(20, rates=(20, 40), burst=1) if quick else Load(1000, rates=(1, 2, 3, 4, 5), burst=1)
    jobs = load.tenants * EACH
    before = offset()
    async with installed(name, load) as subject:
        async with Crew(name, subject.dsn, load, room=jobs) as crew:
            for start in range(0, load.tenants, GROUP):
                group = range(start, min(load.tenants, start + GROUP))
                numbers = [each * load.tenants + tenant for each in range(EACH) for tenant in group]
                await asyncio.gather(*map(subject.enqueue, numbers))
            ready = now()
            await crew.ran(jobs)
            log = crew.board.log()
        connection = await asyncpg.connect(subject.dsn)
        firsts = {row["tenant"]: row["first"] - before for row in await connection.fetch(ARRIVALS[name])}
        await connection.close()
    if abs(offset() - before) > STEPPED:
        raise AssertionError("the wall clock was moved during the run")
    starts: dict[str, list[int]] = defaultdict(list)
    for moment, number in log:
        starts[load.tenant(number)].append(moment)
    late = [pair for name, times in starts.items() for pair in lateness(times, firsts[name], load.rate(name))]
    judged = [abs(error) for due, error in late if due > ready + SETTLING]
    begin, end = min(firsts.values()), max(due for due, _ in late)
    return {
        "total": (log[-1][0] - begin) / (end - begin),
        "p50_ms": milliseconds(percentile(judged, 0.5)),
        "p99_ms": milliseconds(percentile(judged, 0.99)),
        "max_ms": milliseconds(max(judged)),
        "early": sum(1 for _, error in late if error < -STEPPED // 10),
        "setup_s": (ready - begin) / NS,
    }


CASES = (
    Case(
        name="durable-paced",
        target="P11",
        title="1,000 tenants at 1 to 5/s, burst 1, ten jobs each: starts against their slots",
        measure=lambda name, quick: within_limit(paced(name, quick)),
        judged=("waitline", "prototype"),
        beside=PEERS,
        columns=(
            Column("total", "total ÷ schedule", ",.4f"),
            Column("p50_ms", "slot error p50, ms", ",.2f"),
            Column("p99_ms", "p99", ",.2f"),
            Column("max_ms", "max", ",.2f"),
            Column("early", "before their slot", worst=True),
            Column("setup_s", "set-up, s", ",.2f"),
        ),
        note="A slot is counted from when the tenant's first job was accepted, by the server's clock; "
        "the start is when the handler runs. Tenants arrive in groups of 100, with all their "
        "jobs. *Before their slot* is by more than 0.1 ms: two clocks are compared. DBOS limits "
        "starts per window, which gives no slots.",
    ),
)
