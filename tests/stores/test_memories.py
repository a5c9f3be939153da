"""What a deferred job remembers from one try to the next, whichever worker has it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from scheduler import Job, JobFailed, Policy, Quota, Rate, Retry, Rung, Scheduler, SchedulerClosed
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.values import Claim
from scheduler.worker import Worker
from tests.stores.test_gates import gated
from tests.stores.test_ladders import BATCH, OPEN, SLOW, TWO, told
from tests.stores.working import working


async def deferred_ticket(scheduler: Scheduler, policy: Policy = BATCH) -> Any:
    """A job behind a gate whose one permit is gone."""
    async with scheduler.admit("nobody", gate="large"):
        pass
    return await scheduler.enqueue("a", "later", gate="large", policy=policy)


Run = Callable[[Job], Awaitable[Any]]


async def worked(dsn: str, handler: Run, ending: Awaitable[Any], others: Run = told) -> Any:
    """What came of `ending` while a worker with this handler of deferred jobs was there."""
    async with asyncio.TaskGroup() as group:
        worker = Worker(others, PostgresStore(dsn), deferred=handler)
        group.create_task(worker.run(signals=False))
        try:
            return await ending
        finally:
            worker.stop()


async def test_what_was_remembered_is_there_after_the_worker_was_stopped(dsn: str) -> None:
    begun = asyncio.Event()
    seen: list[tuple[str | None, int, int]] = []
    survive: list[bool] = []

    async def handle(job: Job) -> str:
        seen.append((job.remembered, job.attempt, job.tries))
        if len(seen) == 3:
            return "done"
        assert await job.remember(f"batch {job.tries}")
        assert job.remembered == f"batch {job.tries}"
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            survive.append(job.survives)
        return "never"

    async with gated(dsn, TWO, told, deferred=told) as scheduler:
        ticket = await deferred_ticket(scheduler)
        for _ in range(2):
            begun.clear()
            await worked(dsn, handle, begun.wait())
        assert await worked(dsn, handle, ticket.result()) == "done"
    # A stop is no attempt: a job that takes a day may see many deploys.
    assert seen == [(None, 1, 1), ("batch 1", 1, 2), ("batch 2", 1, 3)]
    assert survive == [True, True]


async def test_a_try_that_lost_its_job_can_have_it_remember_nothing(dsn: str) -> None:
    async with gated(dsn, TWO, told, deferred=told) as scheduler, PostgresStore(dsn) as store:
        await deferred_ticket(scheduler)
        (first,) = await store.claim_deferred("one", 1)
        store.lease_ns = 1
        assert await store.beat([first])
        store.lease_ns = 10**10
        claims: list[Claim] = []
        while not claims:
            await store.rescue(5)
            claims = await store.claim_deferred("two", 1)
        (second,) = claims
        kept = await asyncio.gather(
            store.remember(first, "old"), store.remember(second, "new"), store.remember(first, "older")
        )
        assert list(kept) == [False, True, False]
        assert await store.remember(second, "newest")
        connection = await asyncpg.connect(dsn)
        assert await connection.fetchval("select memory from waitline.job where deferred") == "newest"
        await connection.close()


async def test_a_handler_that_is_closed_leaves_its_jobs_to_other_workers(dsn: str) -> None:
    begun, calls = asyncio.Event(), 0

    async def closed(_: Job) -> None:
        nonlocal calls
        calls += 1
        begun.set()
        raise SchedulerClosed("the desk is closed")

    async with gated(dsn, TWO, told, deferred=told) as scheduler:
        ticket = await deferred_ticket(scheduler)

        async def elsewhere() -> Any:
            await begun.wait()
            return await worked(dsn, told, ticket.result())

        assert (await worked(dsn, closed, elsewhere()))["deferred"]
    assert calls == 1


async def test_a_job_that_goes_back_to_its_line_forgets(dsn: str) -> None:
    async def back(job: Job) -> None:
        await job.remember("batch 1")
        raise Retry

    async def plain(job: Job) -> Any:
        with pytest.raises(RuntimeError, match="only a deferred job"):
            await job.remember("something")
        return job.remembered, job.survives

    two = {"large": Quota(Rate(1, burst=1)), "small": OPEN}
    policy = Policy(max_wait=None, ladder=[Rung(0.5, defer="batch")])
    async with gated(dsn, two, plain, deferred=told) as scheduler:
        ticket = await deferred_ticket(scheduler, policy)
        assert await worked(dsn, back, ticket.result(), plain) == [None, False]


async def test_a_deferred_job_that_failed_can_be_tried_again_in_its_line(dsn: str) -> None:
    async def fail(job: Job) -> None:
        await job.remember("batch 1")
        raise KeyError

    async with gated(dsn, {"large": SLOW}, told, deferred=told) as scheduler, PostgresStore(dsn) as store:
        ticket = await deferred_ticket(scheduler)
        (failure,) = await worked(dsn, fail, asyncio.gather(ticket.result(), return_exceptions=True))
        assert isinstance(failure, JobFailed)
        assert await store.revive(int(ticket.id))
        connection = await asyncpg.connect(dsn)
        row = await connection.fetchrow(
            "select state, deferred, memory from waitline.job where id = $1", int(ticket.id)
        )
        await connection.close()
        assert tuple(row or ()) == (0, False, None)


async def test_a_plain_job_of_a_store_remembers_nothing(dsn: str) -> None:
    async def handle(job: Job) -> str:
        with pytest.raises(RuntimeError, match="only a deferred job"):
            await job.remember("something")
        return "done"

    async with working(dsn, handle) as (scheduler, _):
        assert await scheduler.submit("a", "x") == "done"
