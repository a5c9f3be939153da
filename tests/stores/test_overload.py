"""An order for lines that are late, declared over PostgreSQL: for all workers and callers there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from scheduler import ErrRateLimited, Job, Overload, Quota, Rate, Scheduler
from scheduler.core.policy import Cause
from scheduler.stores.postgres import PostgresStore
from scheduler.worker import Worker

ONE = Quota(concurrency=1)
ALWAYS = Overload(0, order="newest")


@asynccontextmanager
async def late_line(dsn: str, timeouts: list[float | None], **settings: Any) -> AsyncIterator[list[str]]:
    """Jobs that wait for a call that is under way, then for a worker: what it was given, in order."""
    order: list[str] = []

    async def note(job: Job) -> None:
        order.append(str(job.prompt))

    worker = Worker(note, PostgresStore(dsn))
    async with (
        Scheduler(store=PostgresStore(dsn), quotas=ONE, **settings) as scheduler,
        asyncio.TaskGroup() as group,
    ):
        async with scheduler.admit("acme"):
            tickets = [
                await scheduler.enqueue("acme", f"{number}", timeout=timeout)
                for number, timeout in enumerate(timeouts)
            ]
        group.create_task(worker.run())
        await asyncio.gather(*(ticket.result() for ticket in tickets))
        worker.stop()
        yield order


@pytest.mark.parametrize("gates", [None, Quota(concurrency=5)])
@pytest.mark.parametrize(
    ("overload", "expected"),
    [
        (None, "0 1 2 3 4"),
        (ALWAYS, "4 3 2 1 0"),
        (Overload(0, order="deadline"), "3 2 0 1 4"),
        (Overload(3600, order="newest"), "0 1 2 3 4"),
    ],
)
async def test_a_worker_takes_late_lines_in_the_declared_order(
    dsn: str, overload: Overload | None, expected: str, gates: Quota | None
) -> None:
    timeouts = [900.0, None, 800.0, 700.0, None]
    async with late_line(dsn, timeouts, overload=overload, gates=gates) as order:
        assert " ".join(order) == expected


async def test_it_is_declared_for_all_until_somebody_declares_another(dsn: str) -> None:
    async with Scheduler(store=PostgresStore(dsn), overload=ALWAYS):
        pass
    async with late_line(dsn, [None] * 3) as order:  # of a scheduler that says nothing of it
        assert order == ["2", "1", "0"]
    async with late_line(dsn, [None] * 3, overload=Overload(3600)) as order:
        assert order == ["0", "1", "2"]


async def test_who_waits_already_goes_by_a_new_order(dsn: str) -> None:
    async with late_line(dsn, [None] * 3) as order:
        assert order == ["0", "1", "2"]
    async with PostgresStore(dsn) as store, store._connections.connection() as connection:
        await connection.execute("update waitline.tenant set waiting = 1, due = null")
        await store.hearing.declare({}, ALWAYS)
        assert await connection.fetchval("select due <= waitline.now_ns() from waitline.tenant")
        await connection.execute("update waitline.tenant set due = null")
        await store.hearing.declare({}, ALWAYS)  # which it is already
        assert await connection.fetchval("select due from waitline.tenant") is None


@pytest.mark.parametrize("gates", [None, Quota(concurrency=5)])
@pytest.mark.parametrize(("overload", "told"), [(ALWAYS, {Cause.OVERLOAD_ORDER}), (Overload(3600), set())])
async def test_who_is_overtaken_is_told(
    dsn: str, overload: Overload, told: set[Cause], gates: Quota | None
) -> None:
    """While it waits, and still when it is over."""
    begun, end = asyncio.Event(), asyncio.Event()

    async def work(_: Job) -> None:
        begun.set()
        await end.wait()

    worker = Worker(work, PostgresStore(dsn))
    settings: dict[str, Any] = {"quotas": ONE, "gates": gates, "overload": overload}
    async with Scheduler(store=PostgresStore(dsn), **settings) as scheduler, asyncio.TaskGroup() as group:
        async with scheduler.admit("acme"):
            tickets: list[Any] = [await scheduler.enqueue("acme", "x") for _ in range(3)]
            assert [(await ticket.look()).delayed_by for ticket in tickets] == [set()] * 3
        group.create_task(worker.run())
        await begun.wait()
        waiting = tickets[1]
        assert (await waiting.look()).state == "waiting"
        assert waiting.delayed_by == told
        end.set()
        await asyncio.gather(*(ticket.result() for ticket in tickets))
        worker.stop()
        overtaken = tickets[0] if told else tickets[2]
        assert (await overtaken.look()).delayed_by == told


@pytest.mark.parametrize("gates", [None, Quota()])
async def test_a_caller_that_goes_first_needs_no_worker(dsn: str, gates: Quota | None) -> None:
    """Nobody takes the job that came before it, and it has to wait for a permit."""
    settings: dict[str, Any] = {"quotas": Quota(Rate(1)), "gates": gates, "overload": ALWAYS}
    async with Scheduler(store=PostgresStore(dsn), **settings) as scheduler, asyncio.timeout(15):
        async with scheduler.admit("acme"):
            ticket = await scheduler.enqueue("acme", "x")
        async with scheduler.admit("acme"):
            pass
        assert ticket.state == "waiting"


@pytest.mark.parametrize("gates", [None, Quota(concurrency=1)])
@pytest.mark.parametrize("overload", [None, Overload(3600)])
async def test_work_that_could_not_end_in_time_is_refused_at_submit(
    dsn: str, overload: Overload | None, gates: Quota | None
) -> None:
    """Jobs take 50 ms as far as is known, and one runs: the start would be in time, the end would not."""
    settings: dict[str, Any] = {"quotas": ONE, "gates": gates, "overload": overload}
    async with Scheduler(store=PostgresStore(dsn), **settings) as scheduler, scheduler.admit("acme"):
        if overload is None:
            ticket = await scheduler.enqueue("acme", "x", timeout=0.09)
            assert ticket.state == "waiting"
        else:
            with pytest.raises(ErrRateLimited) as refused:
                await scheduler.enqueue("acme", "x", timeout=0.09)
            assert refused.value.reason == "deadline"
            assert refused.value.retry_after > 0
