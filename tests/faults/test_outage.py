"""No worker for a while: whoever comes back serves the line from there, not all that was missed at once."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.stage import Machine, stage

pytestmark = pytest.mark.timeout(60)


async def test_jobs_that_came_while_there_was_no_worker_do_not_start_all_at_once(server: Machine) -> None:
    async with stage(server, "outage", concurrency=200, burst=5, rate=50.0) as scene:
        for number in range(50):
            scene.submit("t0", str(number))
            await asyncio.sleep(0.02)
        await scene.finish()
