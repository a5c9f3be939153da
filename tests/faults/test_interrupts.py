"""A worker that is interrupted at an awkward instant: in one process, where the instant can be chosen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from scheduler import Job, JobFailed, Quota, Rate, Retry, Scheduler
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.values import Claim
from scheduler.worker import Worker
from tests.faults.stage import Machine, stage

pytestmark = pytest.mark.timeout(60)

QUICK = Quota(Rate(1000, burst=100))
WAITING, RUNNING, DONE = 0, 1, 2


async def quick(job: Job) -> str:
    await asyncio.sleep(0.01)
    return "done"


async def states(dsn: str) -> list[int]:
    connection = await asyncpg.connect(dsn)
    try:
        return [row["state"] for row in await connection.fetch("select state from waitline.job order by id")]
    finally:
        await connection.close()


@asynccontextmanager
async def working(dsn: str, worker: Worker) -> AsyncIterator[Scheduler]:
    async with Scheduler(store=PostgresStore(dsn), quotas=QUICK) as scheduler, asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        try:
            yield scheduler
        finally:
            worker.stop()
            worker.stop()


async def test_every_try_that_was_recorded_is_counted(server: Machine) -> None:
    dsn = await server.database()
    worker = Worker(quick, PostgresStore(dsn))
    async with working(dsn, worker) as scheduler:
        await asyncio.gather(*(scheduler.submit("t0", str(number)) for number in range(30)))
    assert worker.done == 30


async def test_jobs_given_back_before_their_first_step(server: Machine) -> None:
    """Both signals come in the turn of the loop in which the jobs were claimed."""
    dsn = await server.database()

    class Stopping(PostgresStore):
        async def claim(self, worker: str, slots: int) -> Any:
            claimed = await super().claim(worker, slots)
            if claimed is not None and claimed.claims:
                for _ in range(2):
                    asyncio.get_running_loop().call_soon(hurried.stop)
            return claimed

    async with Scheduler(store=PostgresStore(dsn), quotas=QUICK) as scheduler:
        for number in range(3):
            await scheduler.enqueue("t0", str(number))
    hurried = Worker(quick, Stopping(dsn))
    await asyncio.wait_for(hurried.run(), 10)
    assert await states(dsn) == [WAITING] * 3


async def test_results_that_are_being_recorded_when_the_worker_is_told_to_give_back(server: Machine) -> None:
    dsn = await server.database()

    class Stopping(PostgresStore):
        async def record(self, endings: Sequence[Any]) -> Sequence[bool]:
            for _ in range(2):
                asyncio.get_running_loop().call_soon(hurried.stop)
            return await super().record(endings)

    async with Scheduler(store=PostgresStore(dsn), quotas=QUICK) as scheduler:
        await scheduler.enqueue("t0", "x")
    hurried = Worker(quick, Stopping(dsn))
    await asyncio.wait_for(hurried.run(), 10)
    assert await states(dsn) == [DONE]
    assert hurried.done == 1


async def test_a_heartbeat_that_is_overtaken_by_the_next_try_of_its_job(server: Machine) -> None:
    """What it says of a try that is over does not hold for the one that runs now."""
    dsn = await server.database()
    second = asyncio.Event()

    class Slow(PostgresStore):
        async def beat(self, claims: Iterable[Claim]) -> dict[int, bool]:
            held = list(claims)
            await second.wait()
            return await super().beat(held)

    async def twice(job: Job) -> int:
        if job.attempt == 1:
            await asyncio.sleep(0.5)
            raise Retry(0.0)
        second.set()
        await asyncio.sleep(0.2)
        return job.attempt

    async with working(dsn, Worker(twice, Slow(dsn, lease=1.2))) as scheduler:
        assert await asyncio.wait_for(scheduler.submit("t0", "x"), 10) == 2


async def test_a_running_job_that_was_cancelled_is_not_tried_again_when_its_worker_dies(
    server: Machine,
) -> None:
    async with stage(server, "cancelled, and its worker dead", lease=0.5, longest=60.0) as scene:
        worker = await scene.start()
        ticket = await scene.scheduler.enqueue("t0", "x", key="x")
        await scene.until("select exists (select from waitline.job where state = 1)")
        await worker.kill()
        assert ticket.cancel()
        await scene.start()
        with pytest.raises(JobFailed, match="cancelled"):
            await asyncio.wait_for(ticket.result(), 10)
        found = await scene.finish(worker=False, cancelled=["x"])
        assert found.jobs[1]["tries"] == 1


async def test_a_job_that_comes_back_to_the_worker_that_still_runs_it(server: Machine) -> None:
    """Its lease ran out unnoticed: the try that lost it is ended, and the new one is recorded."""
    dsn = await server.database()
    ends: list[tuple[int, str]] = []

    class Silent(PostgresStore):
        async def beat(self, claims: Iterable[Claim]) -> dict[int, bool]:
            return {claim.id: False for claim in claims}

    async def slow(job: Job) -> int:
        try:
            await asyncio.sleep(0.2 if job.tries > 1 else 5.0)
        except asyncio.CancelledError:
            ends.append((job.tries, "cancelled"))
            raise
        ends.append((job.tries, "done"))
        return job.tries

    worker = Worker(slow, Silent(dsn, lease=0.3))
    async with working(dsn, worker) as scheduler:
        assert await asyncio.wait_for(scheduler.submit("t0", "x"), 10) == 2
    assert ends == [(1, "cancelled"), (2, "done")]
    assert worker.done == 1


async def test_a_worker_that_is_told_three_times_waits_for_no_database(server: Machine) -> None:
    """What it could not record is left to its lease."""
    dsn = await server.database()
    recording = asyncio.Event()

    class Away(PostgresStore):
        async def record(self, endings: Sequence[Any]) -> Sequence[bool]:
            recording.set()
            await asyncio.get_running_loop().create_future()
            return ()

    async with Scheduler(store=PostgresStore(dsn), quotas=QUICK) as scheduler, asyncio.TaskGroup() as group:
        await scheduler.enqueue("t0", "x")
        worker = Worker(quick, Away(dsn))
        running = group.create_task(worker.run())
        await recording.wait()
        for _ in range(2):
            worker.stop()
            await asyncio.sleep(0)
            assert not running.done()
        worker.stop()
        await asyncio.wait_for(running, 10)
    assert await states(dsn) == [RUNNING]


async def test_jobs_whose_claim_was_on_its_way_at_the_second_signal_are_given_back(server: Machine) -> None:
    """And with all that was charged, since their handlers never began."""
    dsn = await server.database()

    class Stopping(PostgresStore):
        async def claim(self, worker: str, slots: int) -> Any:
            claimed = await super().claim(worker, slots)
            for _ in range(2 if claimed is not None and claimed.claims else 0):
                hurried.stop()
            return claimed

    async def begins(job: Job) -> None:
        raise AssertionError(job)

    hourly = Quota(Rate(1, per=3600, burst=5))
    async with Scheduler(store=PostgresStore(dsn), quotas=hourly) as scheduler:
        await scheduler.enqueue("t0", "x")
        hurried = Worker(begins, Stopping(dsn))
        await asyncio.wait_for(hurried.run(), 10)
        assert await states(dsn) == [WAITING]
        assert (await scheduler.statistics("t0")).levels["requests"] > 4.9


async def test_a_worker_that_is_told_three_times_leaves_a_claim_that_hangs(server: Machine) -> None:
    dsn = await server.database()
    asked = asyncio.Event()

    class Hanging(PostgresStore):
        async def claim(self, worker: str, slots: int) -> Any:
            asked.set()
            await asyncio.get_running_loop().create_future()

    async with Scheduler(store=PostgresStore(dsn), quotas=QUICK) as scheduler, asyncio.TaskGroup() as group:
        await scheduler.enqueue("t0", "x")
        worker = Worker(quick, Hanging(dsn))
        running = group.create_task(worker.run())
        await asked.wait()
        for _ in range(3):
            worker.stop()
        await asyncio.wait_for(running, 10)
    assert await states(dsn) == [WAITING]


async def test_a_worker_that_is_told_three_times_leaves_what_its_store_has_to_record(server: Machine) -> None:
    dsn = await server.database()
    held = asyncio.Event()

    class Away(PostgresStore):
        async def _settle(self, endings: Sequence[Any]) -> Sequence[bool]:
            raise OSError("away")

    async def admits(job: Job) -> None:
        async with scheduler.admit("t1"):
            held.set()
            await asyncio.sleep(60)

    store = Away(dsn)
    async with asyncio.timeout(20), Scheduler(store=store, quotas=QUICK) as scheduler:
        await scheduler.enqueue("t0", "x")
        worker = Worker(admits, store)
        running = asyncio.create_task(worker.run())
        await held.wait()
        for _ in range(3):
            worker.stop()
            await asyncio.sleep(0)
        await running  # and leaving the block does not wait either
    assert await states(dsn) == [RUNNING, RUNNING]  # the job, and the caller in it
