"""The server's clock goes back: the time of the lines does not, and nobody stands still meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from scheduler import Job, Quota, Rate, Scheduler
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.opened import STEP
from tests.stores.callers import rows
from tests.stores.working import working

HOUR = 3600 * 10**9
QUICK = Quota(Rate(20, burst=2))


async def step_back(dsn: str, length: int = HOUR) -> None:
    """Set the clock of the server back, as far as the lines can see."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"""
        create or replace function waitline.wall_ns() returns bigint language sql volatile
        as $$ select (extract(epoch from clock_timestamp()) * 1000000000)::bigint - {length} $$
    """)
    await connection.close()


async def ahead(dsn: str) -> int:
    ((found,),) = await rows(dsn, "select ahead from waitline.clock")
    return int(found)


@pytest.mark.parametrize("gates", [None, {"m": QUICK}], ids=["no gate", "gate"])
async def test_jobs_and_callers_go_on(dsn: str, gates: Any) -> None:
    """Made up for once, whoever noticed it and however many did, and by no more than it was."""
    slots: list[int] = []

    async def handler(job: Job) -> None:
        slots.append(job.slot)

    async with (
        working(dsn, handler, QUICK) as (scheduler, _),
        Scheduler(store=PostgresStore(dsn), quotas=QUICK, gates=gates) as other,
    ):
        await asyncio.gather(*(scheduler.submit("acme", "x") for _ in range(4)))
        await step_back(dsn)
        jobs = [scheduler.submit("acme", "x") for _ in range(4)]
        async with other.admit("acme"), other.admit("umbra"):
            await asyncio.gather(*jobs)
        assert slots == sorted(slots)
        assert max(slots) - min(slots) < HOUR // 2
        assert HOUR - STEP < await ahead(dsn) <= HOUR
        quote = await other.quote("acme", cost=None)
        assert quote.wait < 1


async def test_a_process_notices_it_although_no_tenant_was_active(dsn: str) -> None:
    async with PostgresStore(dsn) as store:
        before = await store.clock()
        await step_back(dsn)
        await store.clock()
    assert HOUR - STEP < await ahead(dsn) <= HOUR
    async with PostgresStore(dsn) as store:
        assert await store.clock() > before


async def test_small_steps_and_slow_answers_are_none(dsn: str) -> None:
    async with PostgresStore(dsn) as store:
        await store.clock()
        await step_back(dsn, STEP // 2)
        await store.clock()
        store._noted(await store.clock(), 0)  # as if it had been asked when the machine started
        await store.clock()
    assert await ahead(dsn) == 0
