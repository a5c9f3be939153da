"""What the tests of callers share: a process without a handler, and looks at its database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from scheduler import Policy, Quota, Rate, Scheduler
from scheduler.stores.postgres import PostgresStore
from tests.stores.working import EXAMPLE

FAST_SLOT = Quota(Rate(1000, burst=100), concurrency=1)
PATIENT = Policy(max_wait=None)


@asynccontextmanager
async def web(dsn: str, quota: Quota = EXAMPLE, lease: float = 30.0) -> AsyncIterator[Scheduler]:
    """A process without a handler."""
    async with Scheduler(store=PostgresStore(dsn, lease=lease), quotas=quota, policy=PATIENT) as scheduler:
        yield scheduler


async def until(scheduler: Scheduler, **wanted: int) -> None:
    """Return when the statistics of `acme` say so."""
    while True:
        found = await scheduler.statistics("acme")
        if all(getattr(found, name) == number for name, number in wanted.items()):
            return
        await asyncio.sleep(0)  # what is answered without the database takes no time


async def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()
