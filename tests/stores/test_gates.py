"""Gates that tenants share over PostgreSQL: workers and callers pass them in turns, and they follow."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from scheduler import (
    Answer,
    Cost,
    ErrRateLimited,
    Job,
    News,
    Policy,
    Quota,
    QuotaExceeded,
    Rate,
    Retry,
    Scheduler,
    Signal,
    Upstream,
    Usage,
)
from scheduler.stores.postgres import PostgresStore
from scheduler.worker import Worker
from tests.stores.working import Run, echo

FREE = Quota()


@asynccontextmanager
async def gated(
    dsn: str, gates: Any, handler: Run = echo, workers: int = 1, **settings: Any
) -> AsyncIterator[Scheduler]:
    """A scheduler whose tenants share gates, and workers, with a store each."""
    crew = [Worker(handler, PostgresStore(dsn)) for _ in range(workers)]
    settings.setdefault("quotas", FREE)
    made = Scheduler(store=PostgresStore(dsn), gates=gates, **settings)
    async with made as scheduler, asyncio.TaskGroup() as group:
        for worker in crew:
            group.create_task(worker.run())
        try:
            yield scheduler
        finally:
            for worker in crew:
                worker.stop()
                worker.stop()


async def test_no_more_calls_run_at_once_than_the_gate_has_slots(dsn: str) -> None:
    """Of two workers and of callers together."""
    running, most = 0, 0

    async def work(_: Job | None) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1

    async def call(scheduler: Scheduler, tenant: str) -> None:
        async with scheduler.admit(tenant):
            await work(None)

    async with gated(dsn, Quota(concurrency=3), work, workers=2) as scheduler:
        jobs = [scheduler.submit(f"t{n % 5}", "x") for n in range(40)]
        await asyncio.gather(*jobs, *(call(scheduler, f"t{n % 7}") for n in range(20)))
        known = (await scheduler.statistics()).gates["default"]
    assert most == 3
    assert (known.running, known.waiting, known.slots) == (0, 0, 3)


async def test_tenants_with_few_jobs_do_not_wait_behind_one_with_many(dsn: str) -> None:
    order: list[str] = []
    begin = asyncio.Event()

    async def work(job: Job) -> None:
        await begin.wait()
        order.append(job.tenant)

    async with gated(dsn, {"m": Quota(concurrency=1)}, work) as scheduler:
        noisy = [await scheduler.enqueue("noisy", "x") for _ in range(30)]
        quiet = [await scheduler.enqueue(name, "x") for name in ("quiet", "small")]
        begin.set()
        await asyncio.gather(*(ticket.result() for ticket in (*noisy, *quiet)))
    assert max(order.index("quiet"), order.index("small")) <= 4
    assert Counter(order) == {"noisy": 30, "quiet": 1, "small": 1}


async def test_a_gate_charges_what_was_used(dsn: str) -> None:
    async def work(job: Job) -> None:
        job.settle(Usage(1, 400, 0))

    gate = {"m": Quota(Rate.per_minute(600, burst=10), input_tokens=Rate.per_minute(60, burst=1000))}
    async with gated(dsn, gate, work) as scheduler:
        await scheduler.submit("a", "x", cost=Cost(1, 100, 0))
        levels = (await scheduler.statistics()).gates["m"].levels
    assert 600 <= levels["input_tokens"] < 650


async def test_what_can_never_fit_the_gate_is_refused_at_once(dsn: str) -> None:
    async with gated(dsn, {"m": Quota(input_tokens=Rate.per_minute(1000))}) as scheduler:
        with pytest.raises(QuotaExceeded):
            await scheduler.submit("a", "x", cost=Cost(1, 2000, 0))


async def test_a_job_names_one_of_several_gates(dsn: str) -> None:
    gates = {"x": Quota(concurrency=1), "y": Quota(concurrency=1)}
    seen = []

    async def work(job: Job) -> None:
        seen.append(job.gate)

    async with gated(dsn, gates, work) as scheduler:
        with pytest.raises(ValueError, match="gate: must be one of"):
            await scheduler.submit("a", "which?")
        with pytest.raises(ValueError, match="gate: must be one of"):
            await scheduler.submit("a", "none of these", gate="z")
        await scheduler.submit("a", "x", gate="y")
    assert seen == ["y"]


# --- following ------------------------------------------------------------------------------------------


async def test_a_spending_limit_closes_the_gate_to_all(dsn: str) -> None:
    """Whoever waits is refused with a time of its own, nobody begins, and an operator opens it again."""
    started: list[str] = []
    news: list[News] = []
    begun, release = asyncio.Event(), asyncio.Event()

    async def work(job: Job) -> str:
        started.append(str(job.prompt))
        if job.prompt == "first":
            begun.set()
            await release.wait()
            job.hear(Signal(Answer.SPEND_LIMIT))
            raise Retry(3600, refused=True)
        return "done"

    async with gated(dsn, {"m": Upstream(Quota(concurrency=1))}, work, listener=news.append) as scheduler:
        first = asyncio.ensure_future(scheduler.submit("a", "first"))
        await begun.wait()
        others = [asyncio.ensure_future(scheduler.submit(f"t{n}", "other")) for n in range(5)]
        while (await scheduler.statistics()).gates["m"].waiting < 5:
            pass
        release.set()
        told = await asyncio.gather(first, *others, return_exceptions=True)
        assert all(isinstance(error, ErrRateLimited) for error in told), told
        assert {error.reason for error in told if isinstance(error, ErrRateLimited)} == {"spend_limit"}
        times = {error.retry_after for error in told[1:] if isinstance(error, ErrRateLimited)}
        assert len(times) == 5
        with pytest.raises(ErrRateLimited, match="rate limited") as late:
            await scheduler.submit("b", "later")
        assert late.value.reason == "spend_limit"
        assert (await scheduler.statistics()).gates["m"].closed
        assert started == ["first"]
        scheduler.resume("m")
        while (await scheduler.statistics()).gates["m"].closed:
            pass
        assert await scheduler.submit("b", "again") == "done"


async def test_a_429_pauses_the_gate_for_all_workers(dsn: str) -> None:
    loop = asyncio.get_running_loop()
    began: list[float] = []

    async def work(job: Job) -> str:
        began.append(loop.time())
        if len(began) == 1:
            job.hear(Signal(Answer.RATE_LIMITED, retry_after=0.3))
            raise Retry(0.3, refused=True)
        return "done"

    async with gated(dsn, {"m": Quota(Rate(100, burst=10))}, work, workers=2) as scheduler:
        assert await scheduler.submit("a", "x") == "done"
        assert await scheduler.submit("b", "y") == "done"
    assert began[1] - began[0] >= 0.3


async def test_headers_set_the_limits(dsn: str) -> None:
    async def work(job: Job) -> None:
        job.hear(Signal(Answer.ACCEPTED, limits={"requests": 240}))

    async with gated(dsn, {"m": Quota(Rate.per_minute(60, burst=60))}, work) as scheduler:
        await scheduler.submit("a", "x")
        assert (await scheduler.statistics()).gates["m"].limits["requests"] == 240


async def test_overload_takes_slots_and_answers_give_them_back(dsn: str) -> None:
    answers = [Answer.OVERLOADED] * 3 + [Answer.ACCEPTED] * 30
    slots = []

    async with gated(dsn, {"m": Quota(concurrency=16)}, echo) as scheduler:
        for answer in answers:
            async with scheduler.admit("a") as grant:
                grant.hear(Signal(answer))
            slots.append((await scheduler.statistics()).gates["m"].slots)
    assert min(slot for slot in slots if slot is not None) < 4
    assert slots[-1] == 16


async def test_strict_callers_are_told_when_the_gate_has_room(dsn: str) -> None:
    async with gated(dsn, {"m": Quota(Rate(1, burst=1))}, policy=Policy.strict()) as scheduler:
        async with scheduler.admit("a"):
            pass
        times = []
        for _ in range(3):
            with pytest.raises(ErrRateLimited) as refused:
                async with scheduler.admit("b"):
                    pass
            assert refused.value.reason == "gate"
            times.append(refused.value.retry_after)
    assert 0 < times[0] <= 1
    assert len(set(times)) == 3
