"""Ladders over PostgreSQL: who goes another way, how its handler hears of it, and who is deferred."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import (
    Answer,
    Cost,
    ErrRateLimited,
    Job,
    JobFailed,
    Policy,
    Quota,
    Rate,
    Retry,
    Rung,
    Scheduler,
    Signal,
)
from scheduler.stores.postgres import PostgresStore
from scheduler.worker import Worker
from tests.stores.test_gates import gated

SLOW = Quota(Rate(1, per=3600, burst=1))
OPEN = Quota()
TWO = {"large": SLOW, "small": OPEN}
SMALL = Policy(max_wait=None, ladder=[Rung(10, model="small")])
BATCH = Policy(max_wait=None, ladder=[Rung(10, defer="batch")])


async def told(job: Job) -> dict[str, Any]:
    return job.receipt.to_json()


async def test_a_job_that_would_wait_too_long_goes_through_another_gate(dsn: str) -> None:
    async with gated(dsn, TWO, told) as scheduler:
        first = await scheduler.submit("a", "x", gate="large", policy=SMALL)
        second = await scheduler.submit("a", "x", gate="large", policy=SMALL)
        ticket: Any = await scheduler.enqueue("a", "x", gate="large", policy=SMALL)
        await ticket.result()
        receipt = (await ticket.look()).receipt
        assert (receipt.rung, receipt.gate, receipt.model, receipt.usage) == (0, "small", "small", None)
    assert (first["rung"], first["gate"], first["model"]) == (None, "large", None)
    assert (second["rung"], second["gate"], second["model"]) == (0, "small", "small")
    assert second["predicted"] == pytest.approx(3600, rel=0.01)


async def test_a_dark_ladder_only_tells(dsn: str) -> None:
    news: list[Any] = []
    dark = Policy(max_wait=0, ladder=[Rung(10, model="small")], dark=True)
    async with gated(dsn, TWO, told, listener=news.append) as scheduler:
        await scheduler.submit("a", "x", gate="large", policy=dark)
        with pytest.raises(ErrRateLimited):
            await scheduler.submit("a", "x", gate="large", policy=dark)
        await asyncio.sleep(0)
    assert [(item.what, item.tenant, item.rung) for item in news] == [("would", "a", 0)]


async def test_a_job_that_waits_is_looked_at_again(dsn: str) -> None:
    """It waits for a slot, which nobody can foresee; after a tenth of a second it goes another way."""
    gates = {"large": Quota(concurrency=1), "small": OPEN}
    ladder = Policy(max_wait=None, ladder=[Rung(0.1, gate="small")])
    release = asyncio.Event()

    async def work(job: Job) -> str:
        if job.prompt == "first":
            await release.wait()
        return job.gate

    async with gated(dsn, gates, work) as scheduler:
        first = await scheduler.enqueue("a", "first", gate="large")
        assert await scheduler.submit("a", "second", gate="large", policy=ladder) == "small"
        release.set()
        assert await first.result() == "large"


async def test_those_at_a_gate_that_closes_take_their_rungs(dsn: str) -> None:
    release, begun = asyncio.Event(), asyncio.Event()

    async def work(job: Job) -> str:
        if job.prompt == "first":
            begun.set()
            await release.wait()
            job.hear(Signal(Answer.SPEND_LIMIT))
            raise Retry(3600, refused=True)
        return job.gate

    gates = {"large": Quota(concurrency=1), "small": OPEN}
    async with gated(dsn, gates, work) as scheduler:
        first = asyncio.ensure_future(scheduler.submit("z", "first", gate="large"))
        await begun.wait()
        tickets = [await scheduler.enqueue("a", "x", gate="large", policy=SMALL) for _ in range(3)]
        plain = await scheduler.enqueue("a", "x", gate="large")
        release.set()
        assert [await ticket.result() for ticket in tickets] == ["small"] * 3
        with pytest.raises(ErrRateLimited):
            await plain.result()
        with pytest.raises(ErrRateLimited):
            await first


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (Policy(ladder=[Rung(1, gate="elsewhere")]), "there is no gate 'elsewhere'"),
        (BATCH, "needs deferred="),
    ],
)
async def test_a_ladder_that_leads_nowhere_is_refused(dsn: str, policy: Policy, text: str) -> None:
    async with gated(dsn, TWO) as scheduler:
        with pytest.raises(ValueError, match=text):
            await scheduler.submit("a", "x", gate="large", policy=policy)


async def test_a_ladder_needs_gates(dsn: str) -> None:
    async with Scheduler(store=PostgresStore(dsn)) as scheduler:
        with pytest.raises(ValueError, match="a ladder over a store needs gates"):
            await scheduler.submit("a", "x", policy=SMALL)


# --- deferred -------------------------------------------------------------------------------------------


def desk(dsn: str, handler: Any, others: Any = told) -> Worker:
    """A worker that takes deferred jobs, beside all others."""
    return Worker(others, PostgresStore(dsn), deferred=handler)


async def test_a_deferred_job_is_run_by_a_worker_that_takes_such_jobs(dsn: str) -> None:
    async with gated(dsn, TWO, told, deferred=told) as scheduler:
        await scheduler.submit("a", "x", gate="large", policy=BATCH)
        later = [await scheduler.enqueue("a", f"{n}", gate="large", policy=BATCH) for n in range(3)]
        counts = await scheduler.statistics()
        assert (counts.waiting, counts.running) == (0, 0)  # they hold nothing
        async with asyncio.TaskGroup() as group:
            worker = desk(dsn, told)
            group.create_task(worker.run())
            receipts = [await ticket.result() for ticket in later]
            worker.stop()
    assert [receipt["deferred"] for receipt in receipts] == [True] * 3
    assert {receipt["rung"] for receipt in receipts} == {0}


async def test_a_deferred_job_goes_on_elsewhere_when_its_worker_stops(dsn: str) -> None:
    begun = asyncio.Event()

    async def never(_: Job) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with gated(dsn, TWO, told, deferred=told) as scheduler:
        await scheduler.submit("a", "x", gate="large", policy=BATCH)
        ticket = await scheduler.enqueue("a", "later", gate="large", policy=BATCH)
        async with asyncio.TaskGroup() as group:
            first = desk(dsn, never)
            group.create_task(first.run())
            await begun.wait()
            first.stop()
        async with asyncio.TaskGroup() as group:
            second = desk(dsn, told)
            group.create_task(second.run())
            assert (await ticket.result())["deferred"]
            second.stop()


async def test_a_deferred_job_that_nobody_took_can_be_cancelled(dsn: str) -> None:
    async with gated(dsn, TWO, told, deferred=told) as scheduler:
        await scheduler.submit("a", "x", gate="large", policy=BATCH)
        ticket = await scheduler.enqueue("a", "later", gate="large", policy=BATCH)
        assert ticket.cancel()
        with pytest.raises(JobFailed, match="cancelled"):
            await ticket.result()


async def test_a_deferred_job_that_is_turned_away_goes_back_to_its_line(dsn: str) -> None:
    async def full(_: Job) -> None:
        raise Retry

    two = {"large": Quota(Rate(1, burst=1)), "small": OPEN}
    policy = Policy(max_wait=None, ladder=[Rung(0.5, defer="batch")])
    async with gated(dsn, two, told, deferred=told) as scheduler:
        await scheduler.submit("a", "x", gate="large", policy=policy, cost=Cost(1))
        async with asyncio.TaskGroup() as group:
            worker = desk(dsn, full)
            group.create_task(worker.run())
            receipt = await scheduler.submit("a", "later", gate="large", policy=policy)
            worker.stop()
    assert (receipt["deferred"], receipt["gate"]) == (False, "large")


async def test_the_next_of_a_session_waits_for_a_deferred_job(dsn: str) -> None:
    order: list[str] = []

    async def note(job: Job) -> None:
        order.append(str(job.prompt))

    gates = {"large": SLOW, "small": OPEN}
    async with gated(dsn, gates, note, deferred=note) as scheduler:
        await scheduler.submit("a", "first", gate="large", session="s", policy=BATCH)
        second = await scheduler.enqueue("a", "second", gate="large", session="s", policy=BATCH)
        third = await scheduler.enqueue("a", "third", gate="small", session="s")
        async with asyncio.TaskGroup() as group:
            worker = desk(dsn, note, note)
            group.create_task(worker.run())
            await asyncio.gather(second.result(), third.result())
            worker.stop()
    assert order == ["first", "second", "third"]
