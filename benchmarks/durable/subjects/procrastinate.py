"""Procrastinate on psycopg."""

# ruff: noqa: D102 - what a subject's methods do is said once, in `Subject`

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import procrastinate

from benchmarks.durable.subjects.base import TEXT, Ran, Ready, Subject

CONNECTIONS = 32
"""At most, of a process that enqueues. More than its default, for the case with 32 callers at once."""

CONCURRENCY = 50


class Procrastinate(Subject):
    """One task, 50 at once instead of one."""

    slow = True
    left = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"

    def app(self) -> procrastinate.App:
        connector = procrastinate.PsycopgConnector(conninfo=self.dsn, min_size=4, max_size=CONNECTIONS)
        return procrastinate.App(connector=connector)

    async def install(self) -> None:
        async with self.app().open_async() as app:
            await app.schema_manager.apply_schema_async()

    async def open(self) -> None:
        self.opened = self.app()
        await self.opened.open_async()
        self.deferrer = self.opened.configure_task("noop")

    async def close(self) -> None:
        await self.opened.close_async()

    async def enqueue(self, number: int) -> None:
        await self.deferrer.defer_async(number=number, text=TEXT)

    async def batch(self, numbers: Sequence[int]) -> None:
        await self.deferrer.batch_defer_async(*({"number": number, "text": TEXT} for number in numbers))

    def work(self, ready: Ready, ran: Ran) -> None:
        logging.disable(logging.WARNING)

        async def main() -> None:
            app = self.app()

            @app.task(name="noop")  # type: ignore[untyped-decorator]
            async def noop(number: int, text: str) -> int:  # noqa: ARG001 - what the job carries
                ran(number)
                return number

            async with app.open_async():
                ready()
                await app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False)

        asyncio.run(main())
