"""PgQueuer on asyncpg."""

# ruff: noqa: D102 - what a subject's methods do is said once, in `Subject`

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import asyncpg
from pgqueuer import AsyncpgDriver, Queries, QueueManager
from pgqueuer.models import Job

from benchmarks.durable.subjects.base import TEXT, Ran, Ready, Subject


def payload(number: int) -> bytes:
    """What a job carries."""
    return f"{number} {TEXT}".encode()


class PgQueuer(Subject):
    """As it comes: batches of 10. A pool enqueues, one connection works, as its documentation shows."""

    size = 10
    left = "select count(*) from pgqueuer"

    async def install(self) -> None:
        connection = await asyncpg.connect(self.dsn)
        await Queries.from_asyncpg_connection(connection).install()
        await connection.close()

    async def open(self) -> None:
        self.pool = await asyncpg.create_pool(self.dsn)
        self.queries = Queries.from_asyncpg_pool(self.pool)

    async def close(self) -> None:
        await self.pool.close()

    async def enqueue(self, number: int) -> None:
        await self.queries.enqueue("noop", payload(number))

    async def batch(self, numbers: Sequence[int]) -> None:
        await self.queries.enqueue(["noop"] * len(numbers), list(map(payload, numbers)), [0] * len(numbers))

    def work(self, ready: Ready, ran: Ran) -> None:
        logging.disable(logging.WARNING)

        async def main() -> None:
            connection = await asyncpg.connect(self.dsn)
            manager = QueueManager(Queries(AsyncpgDriver(connection)))

            @manager.entrypoint("noop")  # type: ignore[untyped-decorator]
            async def noop(job: Job) -> None:
                ran(int((job.payload or b"0").partition(b" ")[0]))

            ready()
            await manager.run(batch_size=self.size)

        asyncio.run(main())


class PgQueuerTuned(PgQueuer):
    """Batches of 200."""

    size = 200
