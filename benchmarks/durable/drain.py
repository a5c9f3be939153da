"""P8: how fast workers work off what waits, when no bucket is in the way."""

from __future__ import annotations

import asyncio

import asyncpg

from benchmarks.cases.base import Case, Column
from benchmarks.durable.crew import Crew
from benchmarks.durable.measuring import fill, installed, within_limit
from benchmarks.durable.subjects.base import Load
from benchmarks.measure import NS, Row, now

JOBS = 20_000
LENGTHY, SLOW = {"Procrastinate", "SAQ", "DBOS"}, 20
"""Who gets only one job in so many."""

LOOK = 0.002
"""Seconds between looks into the database for the last of the results."""


async def recorded(dsn: str, left: str) -> None:
    """Wait until the ends of all jobs are committed."""
    connection = await asyncpg.connect(dsn)
    try:
        while await connection.fetchval(left):  # noqa: ASYNC110 - what happens, happens elsewhere
            await asyncio.sleep(LOOK)
    finally:
        await connection.close()


async def drained(name: str, load: Load, jobs: int, workers: int) -> float:
    """Jobs per second, from when every worker has run one until the end of the last one is committed."""
    async with installed(name, load) as subject:
        await fill(subject, jobs)
        async with Crew(name, subject.dsn, load, workers) as crew:
            await crew.ran(jobs)
            await recorded(subject.dsn, subject.left)
            return (jobs - workers) * NS / (now() - crew.board.begun())


async def both(name: str, tenants: int, quick: bool) -> Row:
    """With one worker, and with two on a new database."""
    jobs = 300 if quick else JOBS // SLOW if name in LENGTHY else JOBS
    load = Load(tenants=10 if quick and tenants > 1 else tenants)
    return {
        "one": await drained(name, load, jobs, 1),
        "two": None if quick and name in LENGTHY else await drained(name, load, jobs, 2),
        "jobs": jobs,
    }


def drain(name: str, tenants: int, title: str, beside: tuple[str, ...], note: str) -> Case:
    """One of the two cases."""
    return Case(
        name=name,
        target="P8",
        title=title,
        measure=lambda subject, quick: within_limit(both(subject, tenants, quick)),
        judged=("waitline, concurrency 400", "prototype", "PgQueuer, batch 200"),
        beside=beside,
        columns=(Column("one", "1 worker"), Column("two", "2 workers"), Column("jobs", "jobs")),
        most=2,
        note=note,
    )


CASES = (
    drain(
        "durable-drain",
        1000,
        "no-op jobs per second, 1,000 tenants whose buckets never bind",
        ("waitline", "PgQueuer", "Procrastinate", "SAQ", "DBOS"),
        "Workers are processes of their own; the time runs from when each has had a job until the end of the "
        "last one is committed. The peers have no tenants and no buckets: their jobs stand in one line. "
        "*waitline* has 256 slots, as it comes; Procrastinate, SAQ and DBOS get a twentieth of the jobs.",
    ),
    drain("durable-drain-hot", 1, "no-op jobs per second, one tenant whose bucket never binds", (), ""),
)
