"""Those who submit and wait: they go away, and what was accepted runs all the same."""

from __future__ import annotations

import random

import pytest

from tests.faults.stage import Machine, crowd, stage

pytestmark = pytest.mark.timeout(60)

DONE, CANCELLED = 2, 4


async def test_nothing_happens_and_everything_is_answered(server: Machine) -> None:
    async with stage(server, "calm") as scene:
        for _ in range(2):
            await scene.start()
        for tenant, key in crowd(random.Random(1), 4, 120):
            scene.submit(tenant, key)
        found = await scene.finish(worker=False)
        assert len(found.answers) == 120
        assert all(job["tries"] == 1 for job in found.jobs.values())


async def test_an_awaiter_that_is_killed_loses_nothing_of_what_was_accepted(server: Machine) -> None:
    keys = tuple(crowd(random.Random(2), 2, 40))
    async with stage(server, "awaiter killed", rate=10.0, burst=5) as scene:
        await scene.start()
        process = await scene.start("awaiter", keys=keys)
        await scene.until("select count(*) = 40 and count(finished) between 5 and 30 from waitline.job")
        await process.kill()
        found = await scene.finish(worker=False)
        assert len(found.jobs) == len(found.accepted) == len(keys)
        for tenant, key in keys:  # somebody else asks for the same, and gets what was recorded
            scene.submit(tenant, key)
        assert len((await scene.finish(worker=False)).answers) == len(keys)


async def test_an_awaiter_that_is_cancelled_withdraws_its_own_job_and_no_other(server: Machine) -> None:
    async with stage(server, "awaiter cancelled", rate=20.0, burst=2) as scene:
        await scene.start()
        keys = crowd(random.Random(3), 1, 20)
        for tenant, key in keys:
            scene.submit(tenant, key)
        await scene.until("select count(*) = 20 from waitline.job")
        gone = [key for _, key in keys[10:15]]
        for key in gone:
            scene.cancel(key)
        await scene.until("select count(*) = 5 from waitline.job where state = 4")
        left = {key for _, key in keys if key not in gone}
        found = await scene.finish(worker=False, cancelled=gone)
        assert found.answers.keys() == left
