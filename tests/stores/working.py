"""A scheduler and a worker over one database, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from scheduler import Job, Quota, Rate, Scheduler
from scheduler.stores.postgres import PostgresStore
from scheduler.worker import Worker

QUICK = Quota(Rate(1000, burst=100))
EXAMPLE = Quota(Rate(2, burst=5))

Run = Callable[[Job], Awaitable[Any]]


async def echo(job: Job) -> Any:
    return {"prompt": job.prompt, "attempt": job.attempt}


@asynccontextmanager
async def working(
    dsn: str, handler: Run = echo, quota: Quota = QUICK, **settings: Any
) -> AsyncIterator[tuple[Scheduler, Worker]]:
    """A scheduler and a worker, with a store each, as if they were two processes."""
    worker = Worker(handler, PostgresStore(dsn), **settings)
    async with Scheduler(store=PostgresStore(dsn), quotas=quota) as scheduler, asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        try:
            yield scheduler, worker
        finally:
            worker.stop()
            worker.stop()
