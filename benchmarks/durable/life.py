"""P9: the whole life of a job, from the call that submits it to the result in the hands of its caller."""

from __future__ import annotations

import asyncio

from benchmarks.cases.base import Case, Column
from benchmarks.durable.crew import Crew
from benchmarks.durable.measuring import PEERS, installed, within_limit
from benchmarks.durable.subjects.base import Load
from benchmarks.measure import NS, NotPossible, Row, milliseconds, now, percentile

LOAD = Load(tenants=1000)
SECONDS, WARM = 3, 1
CALLERS = 1000


async def loop_closed(name: str, quick: bool) -> Row:
    """Callers that submit a job, wait for its result and submit the next, and one worker process."""
    callers, seconds, warm = (20, 0.5, 0.1) if quick else (CALLERS, SECONDS, WARM)
    async with installed(name, LOAD) as subject:
        if not subject.answers:
            raise NotPossible("it hands no result back to whoever enqueued the job")
        async with Crew(name, subject.dsn, LOAD):
            begin = now()
            since, end = begin + int(warm * NS), begin + int((warm + seconds) * NS)
            waits: list[int] = []

            async def caller(number: int) -> None:
                while (asked := now()) < end:
                    result = await subject.life(number)
                    if int(result) != number:
                        raise AssertionError(f"job {number} got the result of {result}")
                    if asked >= since and (answered := now()) <= end:
                        waits.append(answered - asked)
                    number += callers

            async with asyncio.TaskGroup() as group:
                for number in range(callers):
                    group.create_task(caller(number))
    return {
        "rate": len(waits) / seconds,
        "p50_ms": milliseconds(percentile(waits, 0.5)),
        "p99_ms": milliseconds(percentile(waits, 0.99)),
    }


CASES = (
    Case(
        name="durable-life",
        target="P9",
        title="submit, claim, run, settle, result back: 1,000 in flight, one worker process",
        measure=lambda name, quick: within_limit(loop_closed(name, quick)),
        judged=("waitline", "waitline, concurrency 1,000", "prototype"),
        beside=PEERS,
        columns=(
            Column("rate", "jobs/s"),
            Column("p50_ms", "p50, ms", ",.1f"),
            Column("p99_ms", "p99, ms", ",.1f"),
        ),
        note="1,000 tenants whose buckets never bind. *waitline* has 256 slots, as it comes. SAQ and "
        "DBOS look for their results every 50 ms instead of every 500 or 1,000.",
    ),
)
