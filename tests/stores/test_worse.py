"""Waits that another process made worse: whoever may not wait for so long hears of it wherever it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from scheduler import (
    Cost,
    ErrRateLimited,
    Job,
    Policy,
    Quota,
    Rate,
    Retry,
    Rung,
    Scheduler,
    Signal,
    Ticket,
    Upstream,
)
from scheduler.configuration import Configuration
from scheduler.core.signals import Answer
from scheduler.stores.postgres import PostgresStore
from scheduler.worker import Worker
from tests.stores.working import working

HOURLY, DAILY = Quota(Rate(1, per=3600)), Quota(Rate(1, per=86_400))
PATIENT = Policy(max_wait=None)
HOUR_AND_A_HALF = Policy(max_wait=5400)


@asynccontextmanager
async def two(dsn: str, **settings: object) -> AsyncIterator[tuple[Scheduler, Scheduler]]:
    """Two processes with a store each, and no worker: the first permit is for a job that waits for one."""
    async with (
        Scheduler(store=PostgresStore(dsn), quotas=HOURLY, policy=PATIENT, **settings) as one,  # type: ignore[arg-type]
        Scheduler(store=PostgresStore(dsn), quotas=HOURLY, policy=PATIENT) as other,
    ):
        await one.enqueue("acme", "first")
        yield one, other


async def refused(waits: Awaitable[object]) -> tuple[str, float]:
    with pytest.raises(ErrRateLimited) as error:
        await waits
    return error.value.reason, error.value.retry_after


async def test_an_awaited_job_that_another_process_overtakes(dsn: str) -> None:
    async with two(dsn) as (one, other):
        waits = asyncio.ensure_future(one.submit("acme", "next", policy=HOUR_AND_A_HALF))
        while (await other.statistics("acme")).waiting < 2:
            pass
        longer: Ticket = await one.enqueue("acme", "a patient one", policy=Policy(max_wait=3 * 3600))
        await other.enqueue("acme", "urgent", priority=60)
        reason, after = await refused(waits)
        assert reason == "max_wait"
        assert 5400 < after <= 7200
        assert (await other.statistics("acme")).waiting == 3
        assert 7100 < longer.expected <= 7200, "it moved up by the one that was refused"


async def test_a_caller_that_runs_its_own_work(dsn: str) -> None:
    async def ask(scheduler: Scheduler) -> None:
        async with scheduler.admit("acme", policy=HOUR_AND_A_HALF):
            raise AssertionError("nobody has a permit for it")

    async with two(dsn) as (one, other):
        waits = asyncio.ensure_future(ask(one))
        while (await other.statistics("acme")).waiting < 2:
            pass
        await other.enqueue("acme", "urgent", priority=60)
        reason, after = await refused(waits)
        assert reason == "max_wait"
        assert 5400 < after <= 7200


async def test_a_configuration_that_lowers_a_limit(dsn: str) -> None:
    async with two(dsn) as (one, _), PostgresStore(dsn) as store:
        waits = asyncio.ensure_future(one.submit("acme", "next", policy=HOUR_AND_A_HALF))
        while (await one.statistics("acme")).waiting < 2:
            pass
        await store.apply(Configuration(1, {"acme": DAILY}, None))
        reason, after = await refused(waits)
        assert reason == "max_wait"
        assert 86_000 < after <= 86_400


async def test_a_pause_that_a_worker_hears_of(dsn: str) -> None:
    """Whoever may not wait until its end is refused; one with a ladder goes another way."""

    async def work(job: Job) -> object:
        if job.prompt == "first":
            await both.wait()
            job.hear(Signal(Answer.RATE_LIMITED, retry_after=1800))
            raise Retry(1800, refused=True)
        return job.gate

    both = asyncio.Event()
    gates = {"m": Upstream(Quota(concurrency=1)), "n": Upstream(Quota())}
    ladder = Policy(max_wait=600, ladder=[Rung(300, gate="n")])
    worker = Worker(work, PostgresStore(dsn))
    async with Scheduler(store=PostgresStore(dsn), gates=gates) as scheduler, asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        first = await scheduler.enqueue("acme", "first", policy=PATIENT, gate="m")
        waits = asyncio.ensure_future(scheduler.submit("bolt", "x", gate="m"))
        climbs = asyncio.ensure_future(scheduler.submit("cope", "x", policy=ladder, gate="m"))
        while (await scheduler.statistics()).gates["m"].waiting < 2:
            pass
        both.set()
        reason, after = await refused(waits)
        assert reason == "max_wait"
        assert 1700 < after <= 1800
        assert await climbs == "n"
        first.cancel()
        worker.stop()


async def test_a_job_that_is_tried_again_by_hand_waits_as_long_as_it_takes(dsn: str) -> None:
    """Its own bound was passed long ago; those whom it makes wait are judged."""

    async def fail(job: Job) -> None:
        raise ValueError

    async with working(dsn, fail, HOURLY) as (scheduler, worker), PostgresStore(dsn) as store:
        first = await scheduler.enqueue("acme", "x", policy=Policy(max_wait=1))
        assert (await store.await_outcome(int(first.id))).kind == "ValueError"
        worker.stop()
        waits = asyncio.ensure_future(scheduler.submit("acme", "next", policy=HOUR_AND_A_HALF))
        while (await scheduler.statistics("acme")).waiting < 1:
            pass
        assert await store.revive(int(first.id))
        assert (await refused(waits))[0] == "max_wait"
        assert (await scheduler.statistics("acme")).waiting == 1
        await scheduler.enqueue("acme", "urgent", priority=60, policy=PATIENT)
        assert (await scheduler.statistics("acme")).waiting == 2


TIGHTEST = """
select t.name
from waitline.tenant as t
where t.waiting > 0 and t.tightest is distinct from least(t.tightest, waitline.tightest(t.name))
"""
"""Tenants that would not notice that somebody has to start sooner."""


async def test_every_way_into_a_line_notes_until_when_a_job_has_to_start(dsn: str) -> None:
    """A line that was empty forgets what it knew."""
    connection = await asyncpg.connect(dsn)

    async def tightest() -> list[float | None]:
        assert not await connection.fetch(TIGHTEST)
        now = await connection.fetchval("select waitline.now_ns()")
        found = await connection.fetch("select tightest from waitline.tenant where waiting > 0 order by name")
        return [None if row[0] is None else round((row[0] - now) / 1e10) * 10 for row in found]

    async with Scheduler(store=PostgresStore(dsn), quotas=HOURLY, policy=PATIENT) as scheduler:
        long = Policy(max_wait=7200)
        tickets = [await scheduler.enqueue("acme", "x", policy=policy) for policy in (PATIENT, long)]
        assert await tightest() == [7200]
        tickets += [
            await scheduler.enqueue("acme", "x", policy=Policy(max_wait=wait)) for wait in (4.6e9, 12_000)
        ]
        assert await tightest() == [7200]
        others = [await scheduler.enqueue("bolt", "x", cost=Cost(1), session="s", policy=long) for _ in "ab"]
        assert await tightest() == [7200, 7200]
        for ticket in [*tickets, *others]:
            ticket.cancel()
        while (await scheduler.statistics()).waiting:
            pass
        assert await tightest() == []
        for tenant in ("acme", "bolt"):
            await scheduler.enqueue(tenant, "x", session=None if tenant == "acme" else "t")
        assert await tightest() == [None, None]
    await connection.close()
