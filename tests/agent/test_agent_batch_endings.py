"""Deferred jobs that are cancelled, and desks and schedulers that are closed."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import pytest

from agent import BatchDesk
from scheduler import JobFailed, Scheduler, SchedulerClosed, Ticket
from scheduler.testing import effects
from tests.agent.claudes import SECRET, connected, tool, until
from tests.agent.deferring import (
    DEFERRING,
    bodies,
    calls,
    created,
    crowd,
    deferring,
    on,
    pause,
    replies,
    slow,
)


async def test_a_job_that_is_cancelled_before_its_batch_goes_is_left_out() -> None:
    async with deferring() as (claude, scheduler, desk):
        one, two = await crowd(scheduler, "one", "two")
        await until(lambda: desk.jobs == 2)
        await asyncio.sleep(0.01)
        assert one.cancel()
        assert (await two.result()).turns == 1
        ((request,),) = bodies(claude)
    assert request["params"]["messages"][0]["content"] == "two"


async def test_if_all_are_cancelled_nothing_goes_and_the_next_ones_go_as_ever() -> None:
    async with deferring(desk={"window": 0.15}) as (claude, scheduler, desk):
        (one,) = await crowd(scheduler, "one")
        await until(lambda: desk._box is not None and len(desk._box.letters) == 1)
        assert one.cancel()
        await until(lambda: desk.jobs == 0)
        (two,) = await crowd(scheduler, "two")
        assert (await two.result()).turns == 1
        assert [len(requests) for requests in bodies(claude)] == [1]
        (three,) = await crowd(scheduler, "three")
        await until(lambda: desk._box is not None and len(desk._box.letters) == 1)
        assert three.cancel()
        await asyncio.sleep(0.2)
        assert len(created(claude)) == 1


async def test_a_job_that_is_cancelled_later_is_dropped_and_the_others_get_their_answers() -> None:
    async with deferring() as (claude, scheduler, _):
        one, two = await crowd(scheduler, "one", "two")
        await until(lambda: len(claude._simulation.batches) == 1)
        assert one.cancel()
        assert (await two.result()).turns == 1
        assert calls(claude, "/cancel") == []
    with pytest.raises(JobFailed, match="cancelled"):
        await one.result()


async def test_a_batch_whose_jobs_are_all_cancelled_is_cancelled_upstream() -> None:
    config = slow(on("cancel", effects.Overloaded(), times=1), batch_s=10_000.0)
    async with deferring(config) as (claude, scheduler, _):
        tickets = await crowd(scheduler, "one", "two")
        await until(lambda: len(claude._simulation.batches) == 1)
        await until(lambda: len(calls(claude, method="GET")) > 0)
        for ticket in tickets:
            ticket.cancel()
        await until(lambda: len(calls(claude, "/cancel")) == 2)
        (batch,) = claude._simulation.batches.values()
        await until(lambda: batch.cancelled)
    assert all(isinstance(error, JobFailed) for error in await replies(tickets))


async def test_a_timeout_ends_a_deferred_job() -> None:
    async with deferring(slow(batch_s=10_000.0)) as (claude, scheduler, _):
        with pytest.raises(TimeoutError):
            await scheduler.submit("acme", "one", timeout=0.3)
        await until(lambda: len(calls(claude, "/cancel")) == 1)


async def test_a_scheduler_that_drains_waits_for_its_batches() -> None:
    async with deferring(desk={"window": 30.0}) as (_claude, scheduler, desk):
        tickets = await crowd(scheduler, "one", "two")
        await until(lambda: desk._box is not None and len(desk._box.letters) == 2)
        # The desk is closed first here, so that it does not wait for its window.
        await desk.aclose()
        assert [ticket.state for ticket in tickets] == ["done", "done"]
        with pytest.raises(SchedulerClosed):
            await scheduler.submit("acme", "three")
        await scheduler.aclose()


async def test_a_scheduler_that_does_not_drain_cancels_its_batches() -> None:
    async with deferring(slow(batch_s=10_000.0)) as (claude, scheduler, desk):
        tickets = await crowd(scheduler, "one", "two")
        await until(lambda: len(claude._simulation.batches) == 1)
        await scheduler.aclose(drain=False)
        assert desk.jobs == 0
    assert len(calls(claude, "/cancel")) == 1
    assert [type(error) for error in await replies(tickets)] == [SchedulerClosed] * 2


async def test_a_desk_that_does_not_drain_lets_its_jobs_know() -> None:
    async with deferring(slow(batch_s=10_000.0)) as (claude, scheduler, desk):
        tickets = await crowd(scheduler, "one", "two")
        await until(lambda: len(claude._simulation.batches) == 1)
        (late,) = await crowd(scheduler, "three")
        await until(lambda: desk._box is not None and len(desk._box.letters) == 1)
        await desk.aclose(drain=False)
        assert desk.jobs == 0
        got = await replies([*tickets, late])
    assert [type(error) for error in got] == [SchedulerClosed] * 3
    assert len(calls(claude, "/cancel")) == 1
    assert len(created(claude)) == 1


async def test_an_exception_in_the_block_closes_the_desk() -> None:
    async def main() -> None:
        async with deferring(slow(batch_s=10_000.0)) as (claude, scheduler, _):
            tickets.extend(await crowd(scheduler, "one"))
            await until(lambda: len(claude._simulation.batches) == 1)
            raise RuntimeError("over")

    tickets: list[Ticket] = []
    with pytest.raises(RuntimeError, match="over"):
        await main()
    assert [type(error) for error in await replies(tickets)] == [SchedulerClosed]


async def test_beyond_its_bound_jobs_go_back_to_their_line_and_it_is_no_attempt() -> None:
    async with deferring(desk={"max_jobs": 2}, paused=1.0, max_attempts=1) as (_claude, scheduler, _):
        tickets = await crowd(scheduler, "one", "two", "three")
        got = await replies(tickets)
    assert sorted(reply.receipt.deferred for reply in got) == [False, True, True]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"window": 0}, ValueError),
        ({"window": "5"}, TypeError),
        ({"poll": float("inf")}, ValueError),
        ({"poll": True}, TypeError),
        ({"max_batch": 0}, ValueError),
        ({"max_batch": 100_001}, ValueError),
        ({"max_jobs": 1.5}, TypeError),
    ],
)
async def test_bad_arguments_are_named(options: dict[str, Any], error: type[Exception]) -> None:
    async with connected() as (_, agent):
        with pytest.raises(error, match=next(iter(options))):
            BatchDesk(agent, **options)
        with pytest.raises(TypeError, match="agent"):
            BatchDesk("agent")  # type: ignore[arg-type]


async def test_a_desk_must_be_entered_once() -> None:
    async with connected() as (_, agent):
        desk = BatchDesk(agent)
        with pytest.raises(RuntimeError, match="entered"):
            await desk.handle(None)  # type: ignore[arg-type]
        async with desk:
            pass
        with pytest.raises(RuntimeError, match="once"):
            await desk.__aenter__()


@pytest.mark.parametrize(
    "content", [{"type": "text", "text": object()}, {"type": "text", "text": "\ud800" + SECRET}]
)
async def test_a_prompt_that_cannot_be_sent_takes_no_others_along(content: dict[str, Any]) -> None:
    async with deferring() as (_, scheduler, _):
        good = await scheduler.enqueue("acme", "one")
        bad = await scheduler.enqueue("other", "two")
        bad.job.prompt = [content]
        got = await replies([good, bad])
    assert got[0].turns == 1
    assert isinstance(got[1], (TypeError, ValueError))
    assert SECRET not in repr(got[1])


async def test_nothing_is_logged_and_nothing_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asyncio")
    config = slow(
        on("create", effects.Overloaded(), times=1), on("request", effects.ErrorStatus(status=400), nth=1)
    )
    async with deferring(config) as (_claude, scheduler, desk):
        await replies(await crowd(scheduler, SECRET, SECRET))
        await until(lambda: not desk._under_way)
        gc.collect()
    assert SECRET not in caplog.text
    assert "never retrieved" not in caplog.text


async def test_a_desk_whose_closing_is_cancelled_lets_its_jobs_go() -> None:
    tickets: list[Ticket] = []

    async def open_for_a_while() -> None:
        async with desk:
            tickets.extend(await crowd(scheduler, "one"))
            await until(lambda: len(claude._simulation.batches) == 1)

    async with connected(slow(batch_s=10_000.0)) as (claude, agent):
        desk = BatchDesk(agent, window=0.02, poll=0.02)
        async with Scheduler(agent.handle, policy=DEFERRING, deferred=desk.handle) as scheduler:
            await pause(scheduler)
            task = asyncio.create_task(open_for_a_while())
            await until(lambda: desk._closed)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(SchedulerClosed):
                await tickets[0].result()
        assert len(calls(claude, "/cancel")) == 1


async def test_a_desk_that_is_closed_while_a_tool_runs_sends_no_further_batch() -> None:
    running, go_on = asyncio.Event(), asyncio.Event()

    async def look() -> str:
        running.set()
        await go_on.wait()
        return "a view"

    async with deferring(tools=[tool("look", look)]) as (claude, scheduler, desk):
        (ticket,) = await crowd(scheduler, "look out")
        await running.wait()
        closing = asyncio.create_task(desk.aclose(drain=False))
        await until(lambda: desk._aborted)
        go_on.set()
        await closing
        with pytest.raises(SchedulerClosed):
            await ticket.result()
        assert len(created(claude)) == 1


@pytest.mark.parametrize(("status", "tries"), [(529, 5), (404, 1)])
async def test_cancelling_upstream_is_given_up_in_the_end(status: int, tries: int) -> None:
    config = slow(on("cancel", effects.ErrorStatus(status=status)), batch_s=10_000.0)
    async with deferring(config) as (claude, scheduler, desk):
        (ticket,) = await crowd(scheduler, "one")
        await until(lambda: len(claude._simulation.batches) == 1)
        ticket.cancel()
        await until(lambda: not desk._under_way)
        assert len(calls(claude, "/cancel")) == tries


async def test_a_batch_that_is_being_created_for_nobody_is_not() -> None:
    config = slow(on("create", effects.RateLimited(retry_after=30)))
    async with deferring(config) as (claude, scheduler, desk):
        (ticket,) = await crowd(scheduler, "one")
        await until(lambda: len(created(claude)) == 1)
        await until(lambda: created(claude)[0].status == 429)
        ticket.cancel()
        await until(lambda: not desk._under_way)
        assert len(created(claude)) == 1


async def test_a_batch_that_nobody_wants_once_it_is_created_is_cancelled() -> None:
    late = effects.SlowHeaders(seconds=20.0)
    async with deferring(slow(on("create", late), batch_s=10_000.0)) as (claude, scheduler, desk):
        caller = asyncio.create_task(scheduler.submit("acme", "one"))
        await until(lambda: len(created(claude)) == 1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await until(lambda: not desk._under_way)
        assert len(calls(claude, "/cancel")) == 1
        assert (await scheduler.statistics()).cancelled == 1
