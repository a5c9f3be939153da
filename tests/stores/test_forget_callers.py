"""A tenant is forgotten while callers of it, in this and in another process, wait and run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from scheduler import Grant, JobFailed, Quota, Rate, Scheduler, Usage
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import Connections
from tests.stores.callers import FAST_SLOT, PATIENT, rows, until, web
from tests.stores.working import working

HOUR = Quota(Rate(1, per=3600, burst=2))


async def told(grant: Grant) -> str:
    """Of which kind of failure somebody hears who waits for a grant."""
    with pytest.raises(JobFailed) as failed:
        await grant.__aenter__()
    return failed.value.kind


async def test_callers_that_wait_are_cancelled_in_every_process_and_blocks_go_on(dsn: str) -> None:
    async with web(dsn, FAST_SLOT) as one, web(dsn, FAST_SLOT) as other, asyncio.TaskGroup() as group:
        for forgets, stays in ((one, other), (other, one)):
            running = await stays.admit("acme").__aenter__()
            waiting = []
            for number, scheduler in enumerate((one, other, one, other)):
                waiting.append(group.create_task(told(scheduler.admit("acme"))))
                await until(one, waiting=number + 1)
            elsewhere = await forgets.admit("umbra").__aenter__()
            await forgets.forget("acme")
            async with asyncio.timeout(10):  # they are told; nobody has to look for it
                assert [await task for task in waiting] == ["cancelled"] * 4
            found = await one.statistics("acme")
            assert (found.waiting, found.running) == (0, 1), "whoever runs keeps the slot"
            behind = group.create_task(forgets.admit("acme").__aenter__())
            await until(one, waiting=1)
            running.settle()
            (await behind).settle()
            elsewhere.settle()
            await until(one, waiting=0, running=0)
        assert await rows(dsn, "select id from waitline.job where tenant = 'acme'") == []


async def test_what_a_forgotten_block_used_is_recorded(dsn: str) -> None:
    """And nobody gets a permit by it that was used."""
    async with web(dsn, HOUR) as scheduler:
        grants = [await scheduler.admit("acme").__aenter__() for _ in range(2)]
        await scheduler.forget("acme")
        grants[0].settle(Usage(0, 0, 0))
        grants[1].settle()
        await until(scheduler, running=0)
        found = await scheduler.statistics("acme")
        assert found.levels["requests"] == pytest.approx(1, abs=0.01)


async def test_jobs_and_callers_in_one_line_are_forgotten_together(dsn: str) -> None:
    async with web(dsn, HOUR) as scheduler, asyncio.TaskGroup() as group:
        for _ in range(2):
            (await scheduler.admit("acme").__aenter__()).settle()
        tickets, waiting = [], []
        for number in range(4):
            if number % 2:
                tickets.append(await scheduler.enqueue("acme", "x"))
            else:
                waiting.append(group.create_task(told(scheduler.admit("acme"))))
            await until(scheduler, waiting=number + 1)
        await scheduler.forget("acme")
        assert [await task for task in waiting] == ["cancelled"] * 2
        for ticket in tickets:
            with pytest.raises(JobFailed, match="cancelled"):
                await ticket.result()


async def test_a_forgotten_block_of_a_process_that_is_lost_gives_its_slot_back(dsn: str) -> None:
    """And its row ends as cancelled: nobody may think that there is something to try again."""
    async with working(dsn, quota=FAST_SLOT) as (scheduler, _):
        grant = await scheduler.admit("acme").__aenter__()
        await scheduler.forget("acme")
        await rows(dsn, "update waitline.job set lease = 0 where state = 1 returning id")
        assert (await scheduler.submit("acme", "next"))["prompt"] == "next"
        ends = await rows(dsn, "select state, kind, prompt from waitline.job where home is not null")
        assert ends == [(4, "cancelled", None)]
        grant.settle()  # which says nothing any more
        await until(scheduler, running=0)
        await scheduler.forget("acme")
        assert await rows(dsn, "select id from waitline.job") == []


async def test_a_caller_whose_process_heard_nothing_finds_out_by_its_heartbeat(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with web(dsn, FAST_SLOT) as other, web(dsn, FAST_SLOT, lease=0.3) as deaf:
        running = await other.admit("acme").__aenter__()
        waiting = asyncio.create_task(told(deaf.admit("acme")))
        await until(other, waiting=1)
        monkeypatch.setattr(deaf.store.home, "over", lambda _: None)  # type: ignore[attr-defined]
        await other.forget("acme")
        async with asyncio.timeout(10):
            assert await waiting == "cancelled"
        running.settle()


async def test_a_caller_forgotten_before_it_knows_that_it_stands_in_line(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit is done and its answer still on the way when the notification comes, while another waits."""
    store = PostgresStore(dsn)
    async with Scheduler(store=store, quotas=FAST_SLOT, policy=PATIENT) as scheduler, web(dsn) as other:
        await scheduler.admit("umbra").__aenter__()
        before = asyncio.create_task(told(scheduler.admit("umbra")))  # keeps this process watching
        running = await scheduler.admit("acme").__aenter__()
        while (await scheduler.statistics("umbra")).waiting < 1:
            pass
        original, heard = Connections.transaction, asyncio.Event()

        def over(callers: Any) -> None:
            type(store.home).over(store.home, callers)
            heard.set()

        @asynccontextmanager
        async def slow(self: Connections) -> AsyncIterator[Any]:
            async with original(self) as connection:
                yield connection
            if self is store._connections and not heard.is_set():
                monkeypatch.setattr(Connections, "transaction", original)
                await other.forget("acme")
                await heard.wait()
                await scheduler.statistics("acme")  # and whoever was woken by it has looked

        monkeypatch.setattr(store.home, "over", over)
        monkeypatch.setattr(Connections, "transaction", slow)
        async with asyncio.timeout(5):
            assert await told(scheduler.admit("acme")) == "cancelled"
        running.settle()
        before.cancel()
        await asyncio.wait([before])
