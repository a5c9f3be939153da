"""DBOS."""

# ruff: noqa: D102 - what a subject's methods do is said once, in `Subject`

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from dbos import DBOS, DBOSClient

from benchmarks.durable.subjects.base import TEXT, Ran, Ready, Subject

POLL = 0.01
"""Seconds between looks for work; the default is 1."""


class Dbos(Subject):
    """A queue that is looked at every 10 ms, and one workflow."""

    answers = True
    slow = True
    left = "select count(*) from dbos.workflow_status where status in ('ENQUEUED', 'PENDING', 'DELAYED')"

    def launch(self) -> None:
        logging.disable(logging.WARNING)
        DBOS(
            config={
                "name": "bench",
                "system_database_url": self.dsn,
                "log_level": "CRITICAL",
                "application_version": "1",
            }
        )
        DBOS.launch()

    async def install(self) -> None:
        def once() -> None:
            self.launch()
            DBOS.register_queue("bench", polling_interval_sec=POLL)
            DBOS.destroy(destroy_registry=True)

        await asyncio.to_thread(once)

    async def open(self) -> None:
        self.client = await asyncio.to_thread(
            DBOSClient, system_database_url=self.dsn, system_database_pool_size=32, application_name="bench"
        )

    async def close(self) -> None:
        await asyncio.to_thread(self.client.destroy)

    async def enqueue(self, number: int) -> None:
        await self._enqueue(number)

    async def _enqueue(self, number: int) -> Any:
        return await self.client.enqueue_async({"queue_name": "bench", "workflow_name": "noop"}, number, TEXT)

    async def life(self, number: int) -> Any:
        handle = await self._enqueue(number)
        return await handle.get_result(polling_interval_sec=0.05)

    def work(self, ready: Ready, ran: Ran) -> None:
        @DBOS.workflow(name="noop")  # type: ignore[untyped-decorator]
        async def noop(number: int, text: str) -> int:  # noqa: ARG001 - what the job carries
            ran(number)
            return number

        self.launch()
        DBOS.register_queue("bench", polling_interval_sec=POLL)
        ready()
        while True:
            time.sleep(3600)
