"""Deferred jobs reach workers at once, and workers take as many as they have room for, whatever happens."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from scheduler.stores.postgres import PostgresStore, ladders
from scheduler.stores.values import Claim
from scheduler.worker import Worker
from tests.stores.test_gates import gated
from tests.stores.test_ladders import BATCH, TWO, told
from tests.upstreams.calls import until


class Looks:
    """How a worker looks for deferred jobs, and what it runs into: the connection is lost `breaks` times."""

    def __init__(self, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._claim, self._under_way, self.in_vain = ladders.claim, 0, 0
        self._listens = asyncio.Event()
        self.breaks = 0
        monkeypatch.setattr(ladders, "claim", self._look)
        looks = self

        class Store(PostgresStore):
            async def _caught_up(self) -> None:
                await super()._caught_up()
                looks._listens.set()

        self.worker = Worker(told, Store(dsn), deferred=told)

    async def _look(self, *arguments: Any) -> list[Claim] | None:
        if self.breaks:
            self.breaks -= 1
            raise ConnectionResetError
        self._under_way += 1
        try:
            found = await self._claim(*arguments)
        finally:
            self._under_way -= 1
        self.in_vain += not found
        return found

    async def are_over(self) -> None:
        """Wait until the worker has looked in vain, and hears whatever is told from now on."""
        await self._listens.wait()
        wake = self.worker._deferring.wake
        await until(lambda: bool(self.in_vain) and not self._under_way and not wake.is_set())


# It must not take until the next look, which is half a minute later.
@pytest.mark.timeout(20)
async def test_a_connection_that_breaks_is_no_long_delay(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(dsn, monkeypatch)
    async with gated(dsn, TWO, told, deferred=told) as scheduler, asyncio.TaskGroup() as group:
        await scheduler.submit("a", "x", gate="large", policy=BATCH)
        group.create_task(looks.worker.run(signals=False))
        await looks.are_over()
        looks.breaks = 1
        later = await scheduler.enqueue("a", "later", gate="large", policy=BATCH)
        assert (await later.result())["deferred"]
        looks.worker.stop()


@pytest.mark.timeout(20)
async def test_what_somebody_is_busy_with_is_looked_for_again(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rescue may hold a job for a moment that another one has freed, and says nothing when it has done."""
    looks = Looks(dsn, monkeypatch)
    async with gated(dsn, TWO, told, deferred=told) as scheduler, asyncio.TaskGroup() as group:
        await scheduler.submit("a", "x", gate="large", policy=BATCH)
        later = await scheduler.enqueue("a", "later", gate="large", policy=BATCH)
        connection = await asyncpg.connect(dsn)
        busy = connection.transaction()
        await busy.start()
        await connection.execute("select from waitline.job where deferred for update")
        group.create_task(looks.worker.run(signals=False))
        await until(lambda: looks.in_vain > 2)  # more often than it was told
        await busy.rollback()
        await connection.close()
        assert (await later.result())["deferred"]
        looks.worker.stop()


async def test_more_deferred_jobs_end_at_once_than_a_worker_may_have_unrecorded(dsn: str) -> None:
    """It takes no others until they are recorded, and asks for none meanwhile."""
    rooms, full, go_on = [], asyncio.Event(), asyncio.Event()

    class Slow(PostgresStore):
        async def claim(self, worker: str, slots: int) -> Any:
            rooms.append(slots)
            return await super().claim(worker, slots)

        async def record(self, endings: Any) -> Any:
            full.set()
            await go_on.wait()
            return await super().record(endings)

    async with gated(dsn, TWO, workers=0, deferred=told) as scheduler:
        async with scheduler.admit("a", gate="large"):
            pass
        later = [await scheduler.enqueue("a", f"{n}", gate="large", policy=BATCH) for n in range(5)]
        async with asyncio.TaskGroup() as group:
            worker = Worker(told, Slow(dsn), concurrency=1, deferred=told)
            group.create_task(worker.run(signals=False))
            await full.wait()
            other = await scheduler.enqueue("b", "x", gate="small")
            await until(lambda: worker._next_due is not None)  # it has heard of that
            go_on.set()
            for ticket in (*later, other):
                await ticket.result()
            worker.stop()
    assert set(rooms) == {1}
