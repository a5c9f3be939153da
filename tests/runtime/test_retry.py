"""`Retry`: back to the line by one's key, paid or not, paused or not, and never for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import (
    Cost,
    DeadlineExceeded,
    ErrRateLimited,
    Job,
    JobFailed,
    Policy,
    Quota,
    Rate,
    Retry,
    Scheduler,
    SchedulerClosed,
    Usage,
)
from tests.runtime.harness import KNOWN, assert_idle, level, make, now, outcomes, spawn, turns, virtual


class Flaky:
    """A handler that raises what it is told, try by try, and then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.tries: list[tuple[Any, float, int]] = []

    async def __call__(self, job: Job) -> str:
        self.tries.append((job.prompt, now(), job.attempt))
        await asyncio.sleep(0)
        if job.prompt == "flaky" and self.errors:
            raise self.errors.pop(0)
        return "done"


async def call(scheduler: Scheduler, enqueued: bool, prompt: str = "flaky", **options: Any) -> Any:
    """Submit, or enqueue and wait."""
    if enqueued:
        return await (await scheduler.enqueue("acme", prompt, **options)).result()
    return await scheduler.submit("acme", prompt, **options)


both = pytest.mark.parametrize("enqueued", [False, True])


@both
@pytest.mark.parametrize("after", [0.0, 2.0])
def test_a_retry_runs_again_once(enqueued: bool, after: float) -> None:
    """After its pause; a counted try is paid again, and the handler runs once per try."""

    @virtual
    async def scenario() -> None:
        flaky = Flaky(Retry(after), Retry(after))
        async with make(flaky, Quota(Rate(1, per=1000, burst=100))) as scheduler:
            assert await call(scheduler, enqueued) == "done"
            assert flaky.tries == [("flaky", 0.0, 1), ("flaky", after, 2), ("flaky", 2 * after, 3)]
            assert level(scheduler) == 97.0 + 2 * after / 1000
            statistics = await scheduler.statistics()
            assert (statistics.retried, statistics.done, statistics.granted) == (2, 1, 3)
        assert_idle(scheduler)

    scenario()


@both
def test_a_refused_try_is_neither_counted_nor_paid_again(enqueued: bool) -> None:
    """Ten refusals upstream with a limit of two attempts: still done, for the one permit."""

    @virtual
    async def scenario() -> None:
        flaky = Flaky(*(Retry(1, refused=True) for _ in range(4)))
        async with make(flaky, Quota(Rate(1, per=1000, burst=9)), max_attempts=2) as scheduler:
            assert await call(scheduler, enqueued) == "done"
            assert [attempt for _, _, attempt in flaky.tries] == [1] * 5
            assert level(scheduler) == pytest.approx(8.004)

    scenario()


@both
def test_after_the_last_attempt_the_job_has_failed(enqueued: bool) -> None:
    """`JobFailed` names the kind and counts the tries; the handler's exception is the cause."""

    @virtual
    async def scenario() -> None:
        upstream = OSError("connection reset")

        async def handler(job: Job) -> None:
            raise Retry(1) from upstream

        async with make(handler, Quota(Rate(10, burst=9)), max_attempts=3) as scheduler:
            with pytest.raises(JobFailed) as failed:
                await call(scheduler, enqueued)
            assert (failed.value.kind, failed.value.attempts) == ("OSError", 3)
            assert failed.value.__cause__ is upstream
            assert now() == 2.0
            assert str(failed.value) == "tenant 'acme': failed after 3 attempts: OSError"
            assert (await scheduler.statistics()).failed == 1
        assert_idle(scheduler)

    scenario()


@both
def test_a_retry_beyond_the_deadline_ends_at_once(enqueued: bool) -> None:
    """Nobody waits for a try that could not finish."""

    @virtual
    async def scenario() -> None:
        cause = OSError("reset")

        async def handler(job: Job) -> None:
            raise Retry(5) from cause

        async with make(handler) as scheduler:
            with pytest.raises(DeadlineExceeded) as late:
                await call(scheduler, enqueued, timeout=5)
            assert late.value.__cause__ is cause
            assert now() == 0.0
        assert_idle(scheduler)

    scenario()


@both
@pytest.mark.parametrize("refused", [False, True])
def test_strict_does_not_wait_for_a_retry(enqueued: bool, refused: bool) -> None:
    """Refused upstream: `ErrRateLimited` with the time; a real failure: `JobFailed`."""

    @virtual
    async def scenario() -> None:
        async with make(Flaky(Retry(3, refused=refused)), policy=Policy.strict()) as scheduler:
            with pytest.raises(ErrRateLimited if refused else JobFailed) as ended:
                await call(scheduler, enqueued)
            if isinstance(ended.value, ErrRateLimited):
                assert ended.value.retry_after == 3.0
            assert now() == 0.0
        assert_idle(scheduler)

    scenario()


@virtual
async def test_a_retry_keeps_its_place() -> None:
    """It comes back in front of those who arrived after it, and behind nobody but those ahead."""
    flaky = Flaky(Retry(0.25))
    async with make(flaky, Quota(Rate(1))) as scheduler:
        await asyncio.gather(call(scheduler, False), *(call(scheduler, True, p) for p in "ab"))
    assert [prompt for prompt, _, _ in flaky.tries] == ["flaky", "flaky", "a", "b"]
    assert [time for _, time, _ in flaky.tries] == [0.0, 1.0, 2.0, 3.0]


@both
def test_a_retry_at_once_resumes_in_its_place(enqueued: bool) -> None:
    """Going straight back, it neither overtakes those granted in the same moment nor starts twice."""

    @virtual
    async def scenario() -> None:
        flaky = Flaky(Retry(0.0))
        async with make(flaky, Quota(concurrency=1)) as scheduler:
            tasks = [spawn(call(scheduler, enqueued))]
            await asyncio.sleep(0)
            tasks += [spawn(call(scheduler, not enqueued, p)) for p in "ab"]
            await asyncio.gather(*tasks)
        assert [prompt for prompt, _, _ in flaky.tries] == ["flaky", "flaky", "a", "b"]
        assert_idle(scheduler)

    scenario()


@virtual
async def test_a_paused_gate_holds_everybody() -> None:
    """`pause_gate`: nobody of any tenant passes until then; the cause is named."""
    flaky = Flaky(Retry(3, pause_gate=True, refused=True))
    async with make(flaky, KNOWN, gates=Quota()) as scheduler:
        first = spawn(call(scheduler, False))
        await turns(3)
        ticket = await scheduler.enqueue("bolt", "x")
        assert (ticket.wait, ticket.expected, ticket.delayed_by) == (0.0, 3.0, frozenset({"pause"}))
        await asyncio.gather(first, ticket.result())
        assert now() == 3.0


@pytest.mark.parametrize("second", [0.0, 1.0])
def test_a_shorter_pause_does_not_cut_a_longer_one(second: float) -> None:
    """Two calls in flight are refused, with 5 s and then with less: nobody passes before 5 s."""

    @virtual
    async def scenario() -> None:
        pauses: dict[Any, list[float]] = {"long": [5.0], "short": [second]}
        starts: list[tuple[Any, float]] = []

        async def handler(job: Job) -> None:
            starts.append((job.prompt, now()))
            await asyncio.sleep(0.1 if job.prompt == "long" else 0.2)
            if pauses.get(job.prompt):
                raise Retry(pauses[str(job.prompt)].pop(), pause_gate=True, refused=True)

        async with make(handler) as scheduler:
            tasks = [spawn(scheduler.submit("acme", p)) for p in ("long", "short")]
            await asyncio.sleep(0.3)
            await asyncio.gather(*tasks, scheduler.submit("bolt", "other"))
        assert min(time for _, time in starts[2:]) == 5.1

    scenario()


@virtual
async def test_usage_of_one_try_is_not_charged_for_the_next() -> None:
    """What a try that failed said it used counts for that one; the try that follows is charged its cost."""
    tries = 0

    async def handler(job: Job) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            job.settle(Usage(1, 0, 0))
            raise Retry(0)

    async with make(handler, Quota(input_tokens=Rate(1, per=1000, burst=100))) as scheduler:
        await scheduler.submit("acme", "x", cost=Cost(1, 10))
        assert level(scheduler, name="input_tokens") == 90.0


@both
@pytest.mark.parametrize("how", ["cancel", "ticket", "closed"])
def test_leaving_between_two_tries(enqueued: bool, how: str) -> None:
    """In backoff a job can be cancelled or closed like one in line, and gives its place away."""

    @virtual
    async def scenario() -> None:
        flaky = Flaky(Retry(10))
        async with make(flaky, Quota(concurrency=1)) as scheduler:
            ticket = await scheduler.enqueue("acme", "flaky") if enqueued or how == "ticket" else None
            task = spawn(ticket.result() if ticket else scheduler.submit("acme", "flaky"))
            await asyncio.sleep(1)
            assert (await scheduler.statistics()).waiting == 1
            if how == "closed":
                await scheduler.aclose(drain=False)
                assert isinstance((await outcomes(task))[0], SchedulerClosed)
            elif ticket:
                assert ticket.state == "waiting"
                assert ticket.cancel()
                error = (await outcomes(task))[0]
                assert isinstance(error, JobFailed)
                assert (error.kind, error.attempts, ticket.state) == ("cancelled", 1, "cancelled")
                assert not ticket.cancel()
            else:
                task.cancel()
                await outcomes(task)
            assert_idle(scheduler)
            assert (now(), (await scheduler.statistics()).cancelled) == (1.0, 1)
        assert len(flaky.tries) == 1

    scenario()


@virtual
async def test_a_retry_is_judged_by_what_it_says() -> None:
    """Bad seconds are refused where they are said."""
    for after in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="after: must be finite seconds of at least 0"):
            Retry(after)
    with pytest.raises(ValueError, match="after: must be at most 4611686018 seconds, got 10000000000"):
        Retry(1e10)


class Odd(Exception):
    """An error that does not say its kind."""

    @property
    def kind(self) -> str:
        raise RuntimeError("not known yet")


@both
def test_an_error_whose_kind_cannot_be_read_holds_nothing(enqueued: bool) -> None:
    """It ends its job like any other, and goes by the name of its type."""

    @virtual
    async def scenario() -> None:
        async def handler(job: Job) -> None:
            if job.prompt == "again":
                raise Retry from Odd()
            raise Odd

        async with make(handler, KNOWN, max_attempts=2) as scheduler:
            with pytest.raises(Odd):
                await call(scheduler, enqueued)
            with pytest.raises(JobFailed, match="failed after 2 attempts: Odd"):
                await call(scheduler, enqueued, "again")
            assert_idle(scheduler)
            assert (await scheduler.statistics()).failed == 2

    scenario()
