"""A process dies at a named point: nothing is lost, and nothing happens twice but the handler."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from tests.faults.points import (
    CALLER_POINTS,
    FORGET_POINTS,
    PLAIN_POINTS,
    RESCUE_POINTS,
    SUBMIT_POINTS,
    WORKER_POINTS,
)
from tests.faults.processes import Process
from tests.faults.stage import Machine, Stage, crowd, stage

pytestmark = pytest.mark.timeout(60)

SEED = 20


async def die(scene: Stage, points: Sequence[str], at_once: int) -> None:
    """Have workers that die at these points, some at a time, until each point has had its dead."""
    rng, left = random.Random(SEED), list(points)
    rng.shuffle(left)
    running: dict[asyncio.Future[int], Process] = {}
    async with asyncio.timeout(40):
        while left or running:
            while left and len(running) < at_once:
                process = await scene.start(point=left.pop(), nth=rng.randint(1, 3), seed=rng.getrandbits(32))
                running[process.ended] = process
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                del running[ended]


async def feed(scene: Stage, prefix: str) -> None:
    """Keep some jobs waiting."""
    rng, wave = random.Random(SEED), 0
    while True:
        if len(scene.unanswered) < 60:
            wave += 1
            for tenant, key in crowd(rng, 4, 40, f"{prefix}{wave}-"):
                scene.submit(tenant, key)
        await asyncio.sleep(0.02)


async def feeding(scene: Stage, points: Sequence[str], at_once: int) -> None:
    async with asyncio.TaskGroup() as group:
        fed = group.create_task(feed(scene, "job-"))
        await die(scene, points, at_once)
        fed.cancel()
    assert sorted(kill["point"] for kill in scene.kills()) == sorted(points), scene.title


async def test_a_worker_that_dies_at_any_point(server: Machine) -> None:
    async with stage(server, "worker points", seed=SEED, lease=0.6, slots=5) as scene:
        await feeding(scene, WORKER_POINTS, 3)
        found = await scene.finish()
        assert sum(event["what"] == "again" for event in found.events) >= 8, "these deaths orphaned jobs"


async def test_whoever_rescues_that_dies_at_any_point(server: Machine) -> None:
    """Two that die in their handlers leave something to rescue to whoever dies of that."""
    async with stage(server, "rescue points", seed=SEED, lease=0.3) as scene:
        async with asyncio.TaskGroup() as group:
            fed = group.create_task(feed(scene, "job-"))
            for point in RESCUE_POINTS:
                orphaning = await scene.start(point="handler.start", nth=3)
                await orphaning.ended
                rescuing = await scene.start(point=point)
                await asyncio.wait_for(rescuing.ended, 10)
            fed.cancel()
        assert {kill["point"] for kill in scene.kills()} == {*RESCUE_POINTS, "handler.start"}
        await scene.finish()


async def test_a_submitter_that_dies_at_any_point_and_submits_again(server: Machine) -> None:
    """Under their keys: what it does not know to be accepted it submits again."""
    rng = random.Random(SEED)
    async with stage(server, "submit points", seed=SEED) as scene:
        await scene.start()
        keys = tuple(crowd(rng, 3, 30))
        for point in SUBMIT_POINTS:
            process = await scene.start("submitter", keys=keys, point=point, nth=rng.randint(1, 30))
            assert await process.ended == -9, point
        assert await (await scene.start("submitter", keys=keys)).ended == 0
        found = await scene.finish(worker=False)
        assert sorted(job["key"] for job in found.jobs.values()) == sorted(key for _, key in keys)
        assert all(job["tries"] == 1 for job in found.jobs.values())


async def test_a_submitter_of_plain_jobs_that_dies_at_any_point(server: Machine) -> None:
    async with stage(server, "plain points", seed=SEED) as scene:
        await scene.start()
        for point in PLAIN_POINTS:
            keys = tuple(crowd(random.Random(SEED), 2, 12))
            process = await scene.start("plain", keys=keys, point=point, nth=3)
            assert await process.ended == -9, point
        found = await scene.finish(worker=False)
        assert len(found.jobs) - len(found.accepted) <= len(PLAIN_POINTS), (
            "but for the answers that were lost"
        )
        assert all(job["tries"] == 1 for job in found.jobs.values())


async def test_callers_that_die_at_any_point(server: Machine) -> None:
    """Beside others who live, and behind and before jobs: their places and slots are free after a lease."""
    async with stage(server, "caller points", seed=SEED, lease=0.5, longest=0.05) as scene:
        tenants = ("t0", "t1", "c0", "c1")
        await scene.start()
        others = await scene.start("caller", tenants=tenants)
        async with asyncio.TaskGroup() as group:
            fed = group.create_task(feed(scene, "job-"))
            for point in CALLER_POINTS:
                dies = await scene.start("caller", tenants=tenants, point=point, nth=2, holding=True)
                assert await asyncio.wait_for(dies.ended, 20) == -9, point
            fed.cancel()
        await others.kill()
        found = await scene.finish(worker=False)
        lost = [job for job in found.jobs.values() if job["home"] is not None]
        assert lost, "these deaths left somebody in line, or with a grant"
        assert sorted(kill["point"] for kill in scene.kills()) == sorted(CALLER_POINTS)


async def test_whoever_forgets_dies_at_any_point_and_forgets_again(server: Machine) -> None:
    async with stage(server, "forget points", seed=SEED, longest=0.2) as scene:
        await scene.start()
        for wave, point in enumerate(FORGET_POINTS):
            for number in range(60):
                scene.submit("f0", f"{wave}-{number}")
                scene.submit("t0", f"stays-{wave}-{number}")
            await scene.until("select count(*) >= 100 from waitline.job where state < 2")
            process = await scene.start("forgetter", tenants=("f0",), point=point, nth=2)
            assert await asyncio.wait_for(process.ended, 10) == -9, point
        found = await scene.finish(worker=False, forgotten=("f0",))
        assert len(found.jobs) == 180, "of the other tenant"


async def test_a_job_whose_workers_all_die_fails_in_the_end(server: Machine) -> None:
    async with stage(server, "poison", lease=0.3, max_attempts=2) as scene:
        scene.submit("t0", "poison")
        for _ in range(2):
            process = await scene.start(point="handler.start")
            await asyncio.wait_for(process.ended, 10)
        found = await scene.finish()
        assert found.answers == {"poison": ("failed", "worker_lost")}
