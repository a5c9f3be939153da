"""Interruptions: whatever a handler makes of its cancellation, the outcome is ours, the task clean."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import (
    DeadlineExceeded,
    ErrRateLimited,
    Job,
    JobFailed,
    Quota,
    Retry,
    SchedulerClosed,
    SchedulerError,
    UpstreamError,
)
from tests.runtime.harness import assert_idle, make, now, outcomes, spawn, turns, virtual

ERRORS: list[Exception | None] = [
    Retry(100),
    Retry(0, refused=True),
    UpstreamError("broken_stream"),
    ErrRateLimited("acme", "strict", 1.0),
    TimeoutError(),
    LookupError(),
    None,
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("why", ["run_timeout", "timeout", "ticket", "closed"])
def test_whatever_the_handler_makes_of_its_cancellation(error: Exception | None, why: str) -> None:
    """It may raise anything, ours included, or return: the caller learns why it was stopped, at once."""

    async def handler(job: Job) -> str:
        try:
            await asyncio.sleep(50)
        except asyncio.CancelledError:
            if error is not None:
                raise error from None
        return "too late"

    async def clean(call: Any) -> Any:
        try:
            return await call
        finally:
            assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]

    @virtual
    async def scenario() -> None:
        timeout = 2.0 if why == "timeout" else None
        async with make(
            handler, Quota(concurrency=1), run_timeout=2 if why == "run_timeout" else 900
        ) as scheduler:
            ticket = await scheduler.enqueue("acme", "x") if why == "ticket" else None
            call = ticket.result() if ticket else scheduler.submit("acme", "x", timeout=timeout)
            task = spawn(clean(call))
            await asyncio.sleep(2)
            if ticket:
                assert ticket.cancel()
            if why == "closed":
                await scheduler.aclose(drain=False)
            result = (await outcomes(task))[0]
            expected = {"ticket": JobFailed, "closed": SchedulerClosed}.get(why, DeadlineExceeded)
            assert type(result) is expected
            if isinstance(result, DeadlineExceeded):
                assert (result.which, result.seconds) == (why, 2.0)
            assert now() == 2.0
            statistics = await scheduler.statistics()
            counted = (statistics.failed, statistics.cancelled)
            assert counted == ((0, 1) if why in {"ticket", "closed"} else (1, 0))
            assert_idle(scheduler)

    scenario()


@pytest.mark.parametrize("same_scheduler", [True, False])
def test_a_job_within_a_job_stopped_at_the_same_moment(same_scheduler: bool) -> None:
    """Both run in one task: one cancellation each, both taken back."""

    @virtual
    async def scenario() -> None:
        async def handler(job: Job) -> Any:
            if job.prompt == "outer":
                return await inner.submit("acme", "inner")
            return await asyncio.sleep(50)

        outer = make(handler, Quota(), run_timeout=2)
        inner = outer if same_scheduler else make(handler, Quota(), run_timeout=2)

        async def call() -> None:
            with pytest.raises(DeadlineExceeded):
                await outer.submit("acme", "outer")
            assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
            async with asyncio.TaskGroup() as group:  # which counts cancellations
                group.create_task(turns(1))

        async with outer:
            if same_scheduler:
                await asyncio.gather(call(), call())
            else:
                async with inner:
                    await asyncio.gather(call(), call())
        assert now() == 2.0
        assert_idle(outer)
        assert_idle(inner)

    scenario()


@virtual
async def test_cancelled_from_outside_and_stopped_at_the_same_moment() -> None:
    """Whoever cancelled the task from outside gets its CancelledError, whichever came first."""
    for first in ("outside", "inside"):
        async with make(lambda job: asyncio.sleep(50), Quota()) as scheduler:
            task = spawn(scheduler.submit("acme", "x", timeout=2))
            await asyncio.sleep(1)
            loop = asyncio.get_running_loop()
            if first == "outside":
                loop.call_at(loop.time() + 1, task.cancel)
                await asyncio.sleep(1)
            else:
                job = next(iter(scheduler._runs))
                scheduler.interrupt(job, "timeout")
                loop.call_soon(task.cancel)
            assert isinstance((await outcomes(task))[0], asyncio.CancelledError)
            assert_idle(scheduler)


@virtual
async def test_a_cancelled_ticket_does_not_go_back_to_its_line() -> None:
    """A handler that cancels itself and asks for a retry in its first step has no next turn."""

    async def handler(job: Job) -> None:
        assert tickets[0].cancel()
        raise Retry(100)

    async with make(handler) as scheduler:
        tickets = [await scheduler.enqueue("acme", "x")]
        with pytest.raises(JobFailed) as failed:
            await tickets[0].result()
        assert (failed.value.kind, now()) == ("cancelled", 0.0)
        assert_idle(scheduler)


@virtual
async def test_every_try_has_its_own_run_timeout() -> None:
    """It begins with the try, not with the submit; one watch serves jobs that began at different times."""
    tries: list[tuple[Any, float]] = []

    async def handler(job: Job) -> None:
        tries.append((job.prompt, now()))
        if job.prompt == "again" and job.attempt < 3:
            await asyncio.sleep(4)
            raise Retry(3)
        await asyncio.sleep(50)

    async with make(handler, Quota(), run_timeout=5) as scheduler:
        ends: list[tuple[Any, float]] = []

        async def call(prompt: str) -> None:
            with pytest.raises(DeadlineExceeded) as late:
                await scheduler.submit("acme", prompt)
            assert (late.value.which, late.value.seconds) == ("run_timeout", 5.0)
            ends.append((prompt, now()))

        tasks = [spawn(call("again"))]
        for delay in (1, 1.5, 9):
            await asyncio.sleep(delay)
            tasks.append(spawn(call(f"after {delay}")))
        await asyncio.gather(*tasks)
    assert ends == [("after 1", 6.0), ("after 1.5", 7.5), ("after 9", 16.5), ("again", 19.0)]
    assert [time for prompt, time in tries if prompt == "again"] == [0.0, 7.0, 14.0]
    assert isinstance(SchedulerClosed(), SchedulerError)
