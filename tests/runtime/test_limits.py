"""Limits in time: `timeout`, `run_timeout`, deadlines, and handlers that do not care."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import Cost, DeadlineExceeded, ErrRateLimited, Job, JobFailed, Quota, Rate, SchedulerError
from tests.runtime.harness import KNOWN, Notes, assert_idle, level, make, now, outcomes, spawn, turns, virtual

SLOW = Quota(Rate(1))


@virtual
async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    """Reason "deadline", with the time at which it would have started; equal to the deadline is too late."""
    async with make(Notes(), SLOW) as scheduler:
        await scheduler.submit("acme", "x")
        waiting = spawn(scheduler.submit("acme", "x", timeout=1.5))
        await asyncio.sleep(0)
        for timeout in (1.5, 2.0):
            with pytest.raises(ErrRateLimited) as refused:
                await scheduler.submit("acme", "x", timeout=timeout)
            assert refused.value.reason == "deadline"
            assert refused.value.retry_after >= 2.0
        assert now() == 0.0
        await scheduler.submit("acme", "x", timeout=2.0001)
        assert now() == 2.0
        await waiting
    assert_idle(scheduler)


@pytest.mark.parametrize("way", ["submit", "enqueue", "admit"])
def test_a_deadline_that_passes_in_the_line(way: str) -> None:
    """`DeadlineExceeded` at exactly that moment, nothing charged, and those behind move up."""

    @virtual
    async def scenario() -> None:
        notes = Notes()
        async with make(notes, Quota(concurrency=1)) as scheduler:
            async with scheduler.admit("acme"):
                call: Any = None
                if way == "submit":
                    call = scheduler.submit("acme", "x", timeout=2)
                elif way == "enqueue":
                    call = (await scheduler.enqueue("acme", "x", timeout=2)).result()
                else:
                    call = scheduler.admit("acme", timeout=2).__aenter__()
                late = spawn(call)
                behind = spawn(scheduler.submit("acme", "behind"))
                error = (await outcomes(late))[0]
                assert isinstance(error, DeadlineExceeded)
                assert (error.which, error.seconds, now()) == ("timeout", 2.0, 2.0)
                assert str(error) == "tenant 'acme': timeout of 2s passed"
                assert scheduler.engine.waiting == 1
            await behind
            assert notes.order == ["behind"]
            assert (await scheduler.statistics()).failed == 1
        assert_idle(scheduler)

    scenario()


@pytest.mark.parametrize("enqueued", [False, True])
@pytest.mark.parametrize(
    ("timeout", "which", "seconds"),
    [(None, "run_timeout", 3.0), (2, "timeout", 2.0), (9, "run_timeout", 3.0)],
)
def test_a_handler_that_hangs_is_cancelled(
    enqueued: bool, timeout: float | None, which: str, seconds: float
) -> None:
    """By whichever of `timeout` and `run_timeout` comes first; the error names it; the slot is free."""

    @virtual
    async def scenario() -> None:
        notes = Notes(takes=1000)
        async with make(notes, Quota(concurrency=1), run_timeout=3) as scheduler:
            if enqueued:
                call = (await scheduler.enqueue("acme", "x", timeout=timeout)).result()
            else:
                call = scheduler.submit("acme", "x", timeout=timeout)
            with pytest.raises(DeadlineExceeded) as late:
                await call
            assert (late.value.which, late.value.seconds, now()) == (which, seconds, seconds)
            assert notes.ended == ["x"]
            assert_idle(scheduler)
            assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]

    scenario()


@virtual
async def test_the_wait_counts_towards_the_timeout() -> None:
    """`timeout` is from submit to the result: after a second in line, one and a half are left of 2.5."""
    notes = Notes(takes=2)
    async with make(notes, SLOW) as scheduler:
        await scheduler.submit("acme", "x")
        assert now() == 2.0
        await scheduler.enqueue("acme", "y")
        with pytest.raises(DeadlineExceeded):
            await scheduler.submit("acme", "z", timeout=2.5)
        assert notes.starts[2] == ("z", 3.0)
        assert now() == 4.5


@virtual
async def test_a_grant_at_the_very_end_of_its_deadline() -> None:
    """A slot that comes free in that nanosecond is still taken, and the handler gets one step."""
    steps: list[float] = []

    async def handler(job: Job) -> str:
        steps.append(now())
        if job.prompt == "long":
            await asyncio.sleep(1)
        return "done"

    async with make(handler, Quota(concurrency=1)) as scheduler:
        grant = scheduler.admit("acme")
        await grant.__aenter__()
        asyncio.get_running_loop().call_at(2.0, grant.settle)
        quick = spawn(scheduler.submit("acme", "quick", timeout=2))
        long = spawn(scheduler.submit("acme", "long", timeout=2.0))
        results = await outcomes(quick, long)
        assert steps[:1] == [2.0] or isinstance(results[0], DeadlineExceeded)
        assert isinstance(results[1], DeadlineExceeded)
        assert now() == 2.0
        assert_idle(scheduler)


@pytest.mark.parametrize("then", ["returns", "raises"])
def test_a_handler_that_swallows_its_cancellation(then: str) -> None:
    """Its result comes too late and is not taken; the caller gets `DeadlineExceeded` once it has ended."""

    @virtual
    async def scenario() -> None:
        async def handler(job: Job) -> str:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                await asyncio.sleep(5)
            if then == "raises":
                raise LookupError("too late")
            return "too late"

        async with make(handler, Quota(concurrency=1), run_timeout=1) as scheduler:
            call = spawn(scheduler.submit("acme", "x"))
            await asyncio.sleep(2)
            assert (await scheduler.statistics()).running == 1  # it still holds its slot
            with pytest.raises(DeadlineExceeded):
                await call
            assert now() == 6.0
            assert_idle(scheduler)
            assert (await scheduler.statistics()).failed == 1

    scenario()


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("enqueued", [False, True])
@pytest.mark.parametrize(
    "error", [TimeoutError("its own"), asyncio.CancelledError("its own"), StopAsyncIteration()]
)
def test_errors_of_the_handler_s_own_that_look_like_ours(
    suspends: bool, enqueued: bool, error: BaseException
) -> None:
    """They are not taken for a time limit or a cancellation from outside."""

    @virtual
    async def scenario() -> None:
        async def handler(job: Job) -> None:
            if suspends:
                await asyncio.sleep(1)
            raise error

        async with make(handler) as scheduler:
            if enqueued:
                ticket = await scheduler.enqueue("acme", "x")
                call: Any = ticket.result()
            else:
                call = scheduler.submit("acme", "x")
            with pytest.raises(BaseException) as caught:  # noqa: PT011
                await call
            if enqueued and isinstance(error, asyncio.CancelledError):
                assert isinstance(caught.value, JobFailed)
                assert (caught.value.kind, caught.value.__cause__) == ("CancelledError", error)
            else:
                assert type(caught.value) is type(error)
                assert not isinstance(caught.value, SchedulerError)
            assert_idle(scheduler)
            assert level(scheduler) == (4.5 if suspends else 4.0) or suspends

    scenario()


@virtual
async def test_an_outer_timeout_and_an_inner_one_do_not_mix() -> None:
    """The outer one ends as a plain TimeoutError, the inner as `DeadlineExceeded`."""
    async with make(Notes(takes=100), KNOWN, run_timeout=5) as scheduler:
        with pytest.raises(TimeoutError) as outer:
            async with asyncio.timeout(1):
                await scheduler.submit("acme", "x")
        assert not isinstance(outer.value, DeadlineExceeded)
        with pytest.raises(DeadlineExceeded):
            async with asyncio.timeout(50):
                await scheduler.submit("acme", "x")
        assert now() == 6.0
        both = spawn(scheduler.submit("acme", "x"))  # outside and inside at the same moment
        asyncio.get_running_loop().call_at(11.0, both.cancel)
        assert isinstance((await outcomes(both))[0], (asyncio.CancelledError, DeadlineExceeded))
        assert_idle(scheduler)


@virtual
async def test_a_deadline_is_told_to_the_handler() -> None:
    """`job.deadline` is in seconds of the scheduler's clock, and None without a timeout."""
    seen: list[float | None] = []

    async def handler(job: Job) -> None:
        seen.append(job.deadline)

    async with make(handler) as scheduler:
        await asyncio.sleep(3)
        await scheduler.submit("acme", "x", timeout=2.5)
        await scheduler.submit("acme", "x", cost=Cost(2))
    assert seen == [5.5, None]


@virtual
async def test_a_deadline_far_away_costs_nothing() -> None:
    """A timeout of a lifetime and more is a timeout like another."""
    async with make(Notes(takes=1), SLOW) as scheduler:
        await asyncio.gather(*(scheduler.submit("acme", "x", timeout=4.6e9) for _ in range(3)))
        await turns(1)
    assert now() == 3.0
