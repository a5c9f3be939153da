"""Workers that are stopped, asked to stop, or too slow: each job has one result, that of who holds it."""

from __future__ import annotations

import asyncio
import random
import signal

import pytest

from scheduler.stores.postgres import PostgresStore
from scheduler.stores.values import Ended
from tests.faults.stage import Machine, crowd, stage

pytestmark = pytest.mark.timeout(60)


async def test_a_worker_stalled_for_longer_than_its_lease_records_nothing(server: Machine) -> None:
    """Its handlers end as soon as it goes on, and what they return is not the jobs' result any more."""
    async with stage(server, "stalled", lease=0.5, longest=0.2) as scene:
        stalled = await scene.start()
        for tenant, key in crowd(random.Random(4), 2, 30):
            scene.submit(tenant, key)
        await scene.until("select count(*) >= 4 from waitline.job where state = 1")
        stalled.signal(signal.SIGSTOP)
        held = await scene.value("select array_agg(id) from waitline.job where state = 1")
        await scene.start()
        await scene.until("select count(*) = 30 from waitline.job where state = 2")
        stalled.signal(signal.SIGCONT)
        stalled.signal(signal.SIGTERM)
        assert await asyncio.wait_for(stalled.ended, 10) == 0
        found = await scene.finish(worker=False)
        assert held
        for job in held:
            assert found.jobs[job]["tries"] == 2
            assert len([line for line in found.starts if line["job"] == job]) == 2


async def test_of_two_workers_that_finish_the_same_job_one_is_recorded(server: Machine) -> None:
    """The first one is stopped at the end of its handler and goes on while the second one is in it."""
    async with stage(server, "both", lease=0.4, longest=0.6, concurrency=1) as scene:
        first = await scene.start(point="handler.end", signal=signal.SIGSTOP, longest=0.01)
        scene.submit("t0", "shared")
        await scene.until("select exists (select from waitline.job where state = 1)")
        second = await scene.start()
        await scene.until(
            f"select exists (select from waitline.job where state = 1 and worker = '{second.role.name}')"
        )
        first.signal(signal.SIGCONT)
        found = await scene.finish(worker=False)
        assert found.jobs[1]["tries"] == 2
        assert found.answers["shared"] == ("done", {"job": 1, "tries": 2})


async def test_a_worker_asked_to_stop_once_finishes_what_runs(server: Machine) -> None:
    async with stage(server, "asked once", longest=0.3) as scene:
        worker = await scene.start()
        for tenant, key in crowd(random.Random(5), 2, 20):
            scene.submit(tenant, key)
        await scene.until("select count(*) >= 3 from waitline.job where state = 1")
        worker.signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.ended, 10) == 0
        assert await scene.value("select count(*) from waitline.job where state = 1") == 0
        assert await scene.value("select count(*) from waitline.job where state = 0") > 0
        found = await scene.finish()
        assert all(job["tries"] == 1 for job in found.jobs.values())


async def test_a_worker_asked_to_stop_twice_gives_back_what_runs(server: Machine) -> None:
    """At once, not when its lease is over; and these tries do not count as attempts."""
    async with stage(server, "asked twice", longest=30.0, lease=60.0, max_attempts=1) as scene:
        worker = await scene.start()
        for tenant, key in crowd(random.Random(6), 2, 12):
            scene.submit(tenant, key)
        await scene.until("select count(*) >= 3 from waitline.job where state = 1")
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGTERM)
        await asyncio.sleep(0.1)  # two signals at one moment may arrive as one
        worker.signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.ended, 10) == 0
        assert await scene.value("select count(*) from waitline.job where state = 1") == 0
        await scene.start(longest=0.01)
        found = await scene.finish(worker=False)
        assert any(job["tries"] == 2 for job in found.jobs.values())


@pytest.mark.parametrize("point", ["claim.locked", "settle.locked"])
async def test_a_worker_that_stands_still_with_its_tenants_locked(server: Machine, point: str) -> None:
    """The database takes the locks away from it, so that the tenants do not stand still with it."""
    async with stage(server, f"still at {point}", lease=0.5) as scene:
        stopped = await scene.start(point=point, signal=signal.SIGSTOP)
        for tenant, key in crowd(random.Random(10), 2, 30):
            scene.submit(tenant, key)
        async with asyncio.timeout(10):
            while not scene.kills():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.02)
        found = await scene.finish()
        assert len(found.answers) == 30
        stopped.signal(signal.SIGCONT)
        stopped.signal(signal.SIGTERM)
        assert await asyncio.wait_for(stopped.ended, 10) == 0
        assert len((await scene.finish(worker=False)).answers) == 30


async def test_two_tries_of_a_job_that_end_in_one_batch(server: Machine) -> None:
    """As it happens to a worker that could not reach the database for longer than a lease."""
    async with stage(server, "one batch") as scene, PostgresStore(scene.dsn, lease=0.3) as store:
        ticket = await scene.scheduler.enqueue("t0", "x", key="x")
        claimed = await store.claim("one", 1)
        assert claimed is not None
        (first,) = claimed.claims
        while not await store.rescue(5):
            await store.clock()
        again = await store.claim("one", 1)
        assert again is not None
        (second,) = again.claims
        ends = [
            Ended(claim.id, "t0", claim.tries, 2, f'{{"value": {claim.tries}}}') for claim in (first, second)
        ]
        assert await store._settle(ends) == [False, True]
        assert await ticket.result() == 2
