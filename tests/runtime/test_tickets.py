"""Tickets: what a caller of `enqueue` sees, over time, and what it can do."""

from __future__ import annotations

import asyncio
import gc
from contextvars import ContextVar

import pytest

from scheduler import Job, JobFailed, Quota, Rate
from tests.runtime.harness import KNOWN, Notes, assert_idle, level, make, now, outcomes, spawn, turns, virtual

who: ContextVar[str] = ContextVar("who", default="nobody")


@virtual
async def test_positions_and_promises_over_time() -> None:
    """The promise is fixed; position and expectation shrink as the line does."""
    async with make(Notes(), Quota(Rate(1))) as scheduler:
        tickets = [await scheduler.enqueue("acme", f"{n}") for n in range(4)]
        assert [t.position for t in tickets] == [0, 0, 1, 2]
        assert [t.wait for t in tickets] == [0.0, 1.0, 2.0, 3.0]
        assert [t.state for t in tickets] == ["running", "waiting", "waiting", "waiting"]
        await asyncio.sleep(0.5)
        assert tickets[1].cancel()
        assert [t.position for t in tickets[2:]] == [0, 1]
        assert [t.wait for t in tickets] == [0.0, 1.0, 2.0, 3.0]
        assert [t.expected for t in tickets] == [0.0, 1.0, 1.0, 2.0]
        assert [t.delayed_by for t in tickets] == [frozenset()] * 4
        await asyncio.sleep(5)
        assert [t.state for t in tickets] == ["done", "cancelled", "done", "done"]
        assert [t.expected for t in tickets] == [0.0, 1.0, 1.0, 2.0]
        assert [t.position for t in tickets] == [0] * 4
    assert len({t.id for t in tickets}) == 4
    assert {t.tenant for t in tickets} == {"acme"}
    assert_idle(scheduler)


@virtual
async def test_promises_are_kept_to_the_nanosecond() -> None:
    """Law 4 for an awkward rate: the measured wait is the promised one."""
    starts: dict[str, float] = {}

    async def handler(job: Job) -> None:
        starts[job.id] = job.waited

    async with make(handler, Quota(Rate(7, per=3, burst=2))) as scheduler:
        tickets = []
        for _ in range(30):
            tickets.append(await scheduler.enqueue("acme", "x"))
            await asyncio.sleep(0.01)
        await asyncio.gather(*(ticket.result() for ticket in tickets))
    assert {t.id: t.wait for t in tickets} == starts


@virtual
async def test_the_result_can_be_asked_twice_late_or_never() -> None:
    """It is kept with the ticket; a failure that nobody asks for is no complaint."""

    async def handler(job: Job) -> str:
        if job.prompt == "bad":
            raise LookupError("bad")
        return "good"

    async with make(handler) as scheduler:
        good = await scheduler.enqueue("acme", "good")
        bad = await scheduler.enqueue("acme", "bad")
        await scheduler.enqueue("acme", "bad")
    await asyncio.sleep(10)
    assert [await good.result(), await good.result()] == ["good", "good"]
    for _ in range(2):
        with pytest.raises(LookupError):
            await bad.result()
    del bad
    gc.collect()
    await turns(2)


@virtual
async def test_cancelling_result_does_not_withdraw_the_job() -> None:
    """Neither while it waits nor while it runs; another may still ask."""
    notes = Notes(takes=2)
    async with make(notes, Quota(Rate(1))) as scheduler:
        await scheduler.enqueue("acme", "first")
        ticket = await scheduler.enqueue("acme", "x")
        for timeout in (0.5, 1.0):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(timeout):
                    await ticket.result()
        assert ticket.state == "running"
        assert await ticket.result() == "answer to x"
        assert now() == 3.0


@pytest.mark.parametrize("when", ["waiting", "granted", "running", "over"])
def test_cancel(when: str) -> None:
    """In line it gives everything back, running it is cancelled, over it is too late."""

    @virtual
    async def scenario() -> None:
        notes = Notes(takes=1)
        async with make(notes, Quota(Rate(1, per=10, burst=2), concurrency=1)) as scheduler:
            if when == "waiting":
                await scheduler.enqueue("acme", "first")
            ticket = await scheduler.enqueue("acme", "x")
            if when == "running":
                await asyncio.sleep(0.5)
            if when == "over":
                await ticket.result()
            assert ticket.cancel() is (when != "over")
            result = (await outcomes(spawn(ticket.result())))[0]
            if when == "over":
                assert (result, ticket.state) == ("answer to x", "done")
            else:
                assert isinstance(result, JobFailed)
                assert (result.kind, result.tenant, ticket.state) == ("cancelled", "acme", "cancelled")
                assert result.attempts == (1 if when == "running" else 0)
                assert (await scheduler.statistics()).cancelled == 1
                assert (await scheduler.statistics()).failed == 0
            assert ticket.cancel() is False
            assert level(scheduler) == {"granted": 2.0, "waiting": 1.0, "running": 1.05, "over": 1.1}[when]
        assert_idle(scheduler)

    scenario()


@virtual
async def test_a_handler_that_cancels_itself_is_cancelled() -> None:
    """Even before its first suspension; it may tidy up, and its result is not taken."""
    ended: list[float] = []

    async def handler(job: Job) -> str:
        assert tickets[0].cancel()
        try:
            await asyncio.sleep(50)
        finally:
            ended.append(now())
        return "never"

    async with make(handler) as scheduler:
        tickets = [await scheduler.enqueue("acme", "x")]
        with pytest.raises(JobFailed) as cancelled:
            await tickets[0].result()
        assert (cancelled.value.kind, ended) == ("cancelled", [0.0])
    assert_idle(scheduler)


@virtual
async def test_cancel_in_the_instant_of_its_deadline() -> None:
    """The deadline has passed though nobody has woken yet: one outcome, delivered once."""
    async with make(Notes(takes=9), Quota(concurrency=1)) as scheduler:
        await scheduler.enqueue("acme", "first")
        ticket = await scheduler.enqueue("acme", "x", timeout=2)
        asyncio.get_running_loop().call_at(2.0, ticket.cancel)  # behind the timer of the same moment
        scheduler._armed = 0  # a timer that is late: nobody re-arms it before
        assert isinstance((await outcomes(spawn(ticket.result())))[0], TimeoutError | JobFailed)
        await scheduler.aclose(drain=False)
    assert_idle(scheduler)


@virtual
async def test_a_job_runs_in_the_context_of_whoever_enqueued_it() -> None:
    """Not in that of the job or the timer that made room for it: nothing leaks from tenant to tenant."""
    seen: list[tuple[str, str]] = []

    async def handler(job: Job) -> None:
        seen.append((job.tenant, who.get()))
        who.set(f"{job.tenant} was here")
        await asyncio.sleep(1)

    async with make(handler, Quota(), max_running=1) as scheduler:
        for tenant in ("acme", "bolt", "cord"):
            who.set(f"caller of {tenant}")
            await scheduler.enqueue(tenant, "x")
        who.set("somebody else")
        await scheduler.submit("dent", "x")
    assert seen == [
        ("acme", "caller of acme"),
        ("bolt", "caller of bolt"),
        ("cord", "caller of cord"),
        ("dent", "somebody else"),
    ]


@virtual
async def test_a_quote_is_what_a_submit_would_get_and_leaves_no_trace() -> None:
    """Position, own wait, expectation and what binds it."""
    async with make(Notes(takes=4), Quota(Rate(1, burst=2)), max_running=3) as scheduler:
        assert (await scheduler.statistics()).tenants == 0
        quote = await scheduler.quote("acme")
        assert (quote.position, quote.wait, quote.expected) == (0, 0.0, 0.0)
        assert (await scheduler.statistics()).tenants == 0
        for _ in range(3):
            await scheduler.enqueue("acme", "x")
        before = (scheduler.engine.waiting, level(scheduler))
        quote = await scheduler.quote("acme")
        assert (quote.position, quote.wait, quote.expected, quote.binds) == (1, 2.0, 2.0, "strict")
        assert (await scheduler.quote("acme", priority=1)).position == 0
        ticket = await scheduler.enqueue("acme", "x")
        assert (ticket.position, ticket.wait, ticket.expected) == (1, 2.0, 2.0)
        assert ticket.cancel()
        assert (scheduler.engine.waiting, level(scheduler)) == before


@virtual
async def test_statistics_of_one_tenant_and_of_all() -> None:
    """Waiting and running now, levels below zero when in debt, counts since the start."""
    async with make(Notes(takes=1), KNOWN) as scheduler:
        tickets = [await scheduler.enqueue("acme", "x") for _ in range(7)]
        one, everyone = await scheduler.statistics("acme"), await scheduler.statistics()
        assert (one.waiting, one.running, one.tenants, dict(one.levels)) == (2, 5, 1, {"requests": 0.0})
        assert (everyone.waiting, everyone.running, everyone.tenants, everyone.granted) == (2, 5, 1, 5)
        nobody = await scheduler.statistics("nobody")
        assert (nobody.waiting, nobody.running, nobody.tenants, dict(nobody.levels)) == (0, 0, 0, {})
        await asyncio.gather(*(ticket.result() for ticket in tickets))
        everyone = await scheduler.statistics()
        assert (everyone.done, everyone.granted, everyone.stalls) == (7, 7, 0)


@virtual
async def test_a_ticket_says_of_a_closed_job_what_the_statistics_say() -> None:
    """Closing without draining cancels a job that waits: its ticket is cancelled, and counted so."""

    async def handler(job: Job) -> None:
        await asyncio.sleep(1)

    async with make(handler, Quota(Rate(1))) as scheduler:
        tickets = [await scheduler.enqueue("acme", "x") for _ in range(2)]
        await scheduler.aclose(drain=False)
        assert [ticket.state for ticket in tickets] == ["cancelled", "cancelled"]
        counted = await scheduler.statistics()
        assert (counted.cancelled, counted.failed) == (2, 0)
