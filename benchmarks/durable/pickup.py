"""P10: how long an idle worker takes to begin with a job that comes."""

from __future__ import annotations

import asyncio
import random

from benchmarks.cases.base import Case, Column
from benchmarks.durable.crew import Crew
from benchmarks.durable.measuring import installed, within_limit
from benchmarks.durable.subjects.base import Load
from benchmarks.measure import Row, milliseconds, now, percentile

LOAD = Load()
JOBS, WARM = 100, 10
PAUSE = 0.010, 0.030
"""Seconds between a job's run and the next call: the worker has gone back to sleep."""


async def picked_up(name: str, quick: bool) -> Row:
    """Jobs one by one: from the call that enqueues it, in another process, to the start of its handler."""
    jobs, draw = 3 if quick else JOBS, random.Random(1)
    async with installed(name, LOAD) as subject, Crew(name, subject.dsn, LOAD, room=jobs + WARM) as crew:
        asked = []
        for number in range(jobs + WARM):
            await asyncio.sleep(draw.uniform(*PAUSE))
            asked.append(now())
            await subject.enqueue(number)
            await crew.ran(number + 1)
        began = {number: moment for moment, number in crew.board.log()}
    waits = [began[number] - asked[number] for number in range(WARM, jobs + WARM)]
    return {
        "p50_ms": milliseconds(percentile(waits, 0.5)),
        "p99_ms": milliseconds(percentile(waits, 0.99)),
        "max_ms": milliseconds(max(waits)),
    }


CASES = (
    Case(
        name="durable-pickup",
        target="P10",
        title="from `enqueue` to the start of the handler, an idle worker, ms",
        measure=lambda name, quick: within_limit(picked_up(name, quick)),
        judged=("waitline", "prototype", "PgQueuer", "SAQ"),
        beside=("Procrastinate", "DBOS"),
        columns=(
            Column("p50_ms", "p50", ",.2f"),
            Column("p99_ms", "p99", ",.2f"),
            Column("max_ms", "max", ",.2f"),
        ),
        note="100 jobs, each when the one before has run and 10 to 30 ms have passed.",
    ),
)
