"""SAQ, with its queue in PostgreSQL, on psycopg."""

# ruff: noqa: D102 - what a subject's methods do is said once, in `Subject`

from __future__ import annotations

import asyncio
import logging
from typing import Any

from saq import Worker
from saq.queue.postgres import PostgresQueue

from benchmarks.durable.subjects.base import TEXT, Ran, Ready, Subject

CONNECTIONS = 32
"""At most, of a process. More than its default of 20, for the case with 32 callers at once."""

CONCURRENCY = 50


class Saq(Subject):
    """50 at once instead of 10."""

    answers = True
    slow = True
    left = "select count(*) from saq_jobs where status in ('new', 'queued', 'active')"

    def new_queue(self) -> PostgresQueue:
        return PostgresQueue.from_url(self.dsn, max_size=CONNECTIONS)

    async def install(self) -> None:
        queue = self.new_queue()
        await queue.connect()
        await queue.disconnect()

    async def open(self) -> None:
        logging.disable(logging.WARNING)
        self.queue = self.new_queue()
        await self.queue.connect()

    async def close(self) -> None:
        await self.queue.disconnect()

    async def enqueue(self, number: int) -> None:
        await self.queue.enqueue("noop", number=number, text=TEXT)

    async def life(self, number: int) -> Any:
        # The default looks for the result every half a second.
        return await self.queue.apply("noop", number=number, text=TEXT, poll_interval=0.05)

    def work(self, ready: Ready, ran: Ran) -> None:
        logging.disable(logging.WARNING)

        async def noop(_: Any, *, number: int, text: str) -> int:  # noqa: ARG001 - what the job carries
            ran(number)
            return number

        async def main() -> None:
            queue = self.new_queue()
            await queue.connect()
            ready()
            await Worker(queue, functions=[("noop", noop)], concurrency=CONCURRENCY).start()

        asyncio.run(main())
