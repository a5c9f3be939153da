"""The database dies, connections break, notifications are lost: jobs and awaiters ride it out."""

from __future__ import annotations

import asyncio
import random

import pytest

from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import LOST
from tests.faults.stage import Machine, Stage, crowd, stage

pytestmark = pytest.mark.timeout(60)


async def busy(scene: Stage, jobs: int) -> None:
    """Two workers in the midst of it."""
    for _ in range(2):
        await scene.start()
    for tenant, key in crowd(random.Random(7), 4, jobs):
        scene.submit(tenant, key)
    await scene.until("select count(*) >= 20 from waitline.job where state = 2")


async def test_a_database_that_is_killed_while_jobs_run_and_wait(server: Machine) -> None:
    async with stage(server, "database killed", longest=0.2, rate=30.0) as scene:
        await busy(scene, 160)
        await server.restart(0.3)
        for tenant, key in crowd(random.Random(8), 4, 40, "after-"):
            scene.submit(tenant, key)
        found = await scene.finish(worker=False)
        assert len(found.answers) == 200


async def test_a_database_that_is_killed_while_everybody_is_idle(server: Machine) -> None:
    async with stage(server, "database killed, idle") as scene:
        worker = await scene.start()
        scene.submit("t0", "before")
        await scene.until("select count(*) = 1 from waitline.job where state = 2")
        await server.restart(0.1)
        scene.submit("t0", "after")
        found = await scene.finish(worker=False)
        assert len(found.answers) == 2
        assert not worker.ended.done()


async def test_connections_that_break_in_the_midst_of_it(server: Machine) -> None:
    async with stage(server, "connections cut", longest=0.05, rate=40.0) as scene:
        await busy(scene, 160)
        for _ in range(6):
            assert await scene.cut() > 0
            await asyncio.sleep(0.15)
        found = await scene.finish(worker=False)
        assert len(found.answers) == 160


async def test_a_lost_notification_is_made_up_for_when_the_listener_is_back(server: Machine) -> None:
    """Far sooner than the half minute after which everybody looks for himself."""
    async with stage(server, "listeners cut", longest=0.05, rate=200.0) as scene:
        await scene.start()
        for wave in range(5):
            for tenant, key in crowd(random.Random(wave), 4, 20, f"{wave}-"):
                scene.submit(tenant, key)
            assert await scene.cut("query ilike 'listen%'") >= 1
            await asyncio.sleep(0.1)
        async with asyncio.timeout(15):
            found = await scene.finish(worker=False)
        assert len(found.answers) == 100


async def test_an_awaiter_that_is_cancelled_while_the_database_is_down(server: Machine) -> None:
    """Its job is withdrawn when that is possible again, and the others who wait in that process still do."""
    async with stage(server, "cancelled while down", rate=20.0, burst=2, longest=0.05) as scene:
        await scene.start()
        keys = crowd(random.Random(9), 1, 40)
        for tenant, key in keys:
            scene.submit(tenant, key)
        await scene.until("select count(*) = 40 from waitline.job")
        gone = [key for _, key in keys[-3:]]
        restarted = asyncio.create_task(server.restart(0.5))
        await asyncio.sleep(0.2)
        for key in gone:
            scene.cancel(key)
        await restarted
        found = await scene.finish(worker=False, cancelled=gone)
        assert len(found.answers) == 37


async def test_a_store_that_could_not_be_opened_can_be_opened_later(server: Machine) -> None:
    async with stage(server, "opened while down", concurrency=2) as scene:
        store = PostgresStore(scene.dsn, migrate=False)
        restarted = asyncio.create_task(server.restart(0.3))
        await asyncio.sleep(0.1)
        with pytest.raises(LOST):
            await store.__aenter__()
        await restarted
        async with store:
            assert (await store.count(None))["waiting"] == 0


async def test_two_that_open_a_store_at_the_same_moment(server: Machine) -> None:
    store = PostgresStore(await server.database())

    async def use() -> int:
        async with store:
            return int((await store.count(None))["waiting"])

    assert sum(await asyncio.gather(use(), use(), use())) == 0
