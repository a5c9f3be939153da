"""What the durable cases share: a database with a subject's tables, lines with jobs, a bound on the time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.durable.server import database
from benchmarks.durable.subjects import made
from benchmarks.durable.subjects.base import Load, Subject
from benchmarks.measure import NotPossible, Row

LIMIT = 150.0
"""Seconds for one measurement: less than a process is given, so that its server is stopped in order."""

CALLERS = 1000
"""Callers at once that fill a line."""

PEERS = ("PgQueuer", "Procrastinate", "SAQ", "DBOS")


def within_limit(measurement: Coroutine[Any, Any, Row]) -> Row:
    """Run a measurement in a loop of its own."""

    async def main() -> Row:
        async with asyncio.timeout(LIMIT):
            return await measurement

    return asyncio.run(main())


@asynccontextmanager
async def installed(name: str, load: Load) -> AsyncIterator[Subject]:
    """A subject on a database of its own, ready to enqueue."""
    async with database() as dsn:
        subject = made(name, dsn, load)
        await subject.install()
        await subject.open()
        try:
            yield subject
        finally:
            await subject.close()


async def many(subject: Subject, numbers: Iterable[int], callers: int) -> None:
    """Enqueue jobs, so many calls at once; a caller enqueues one job after the other."""
    waiting = iter(numbers)

    async def caller() -> None:
        for number in waiting:
            await subject.enqueue(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())


async def fill(subject: Subject, jobs: int) -> None:
    """Enqueue the jobs 0, 1, … in the quickest way that the subject has."""
    for start in range(0, jobs, CALLERS):
        numbers = range(start, min(jobs, start + CALLERS))
        try:
            await subject.batch(numbers)
        except NotPossible:
            await many(subject, numbers, 32)
