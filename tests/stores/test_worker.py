"""What a worker makes of a handler: results, failures, repeats, limits."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from scheduler import (
    Cost,
    DeadlineExceeded,
    Job,
    JobFailed,
    Policy,
    Quota,
    Rate,
    Retry,
    Usage,
)
from scheduler.stores.postgres import PostgresStore
from tests.stores.working import working


async def test_a_failing_handler_is_a_failed_job_without_its_text(dsn: str) -> None:
    async def fails(job: Job) -> None:
        raise LookupError("a secret text")

    async with working(dsn, fails) as (scheduler, _):
        with pytest.raises(JobFailed) as failed:
            await scheduler.submit("acme", "x")
        assert (failed.value.kind, failed.value.attempts) == ("LookupError", 1)
        assert "secret" not in str(failed.value)


async def test_a_cancellation_that_is_none_of_the_job_s_fails_it_at_once(dsn: str) -> None:
    runs = 0

    async def awaits_what_is_cancelled(job: Job) -> None:
        nonlocal runs
        runs += 1
        inner = asyncio.create_task(asyncio.sleep(60))
        inner.cancel()
        await inner

    async with working(dsn, awaits_what_is_cancelled) as (scheduler, _):
        with pytest.raises(JobFailed) as failed:
            await scheduler.submit("acme", "x")
    assert (failed.value.kind, failed.value.attempts, runs) == ("CancelledError", 1, 1)


async def test_a_kind_that_no_column_takes_fails_its_job_and_no_other(dsn: str) -> None:
    class Odd(Exception):
        kind = "n\0t \ud800" + "x" * 1000

    async def fails(job: Job) -> str:
        if job.prompt == "odd":
            raise Odd
        return "fine"

    async with working(dsn, fails) as (scheduler, _):
        odd, fine = [await scheduler.enqueue("acme", prompt) for prompt in ("odd", "fine")]
        with pytest.raises(JobFailed) as failed:
            await odd.result()
        assert failed.value.kind.startswith("nt ?xxx")
        assert len(failed.value.kind) < 300
        assert await fine.result() == "fine"


async def test_a_retry_that_is_too_far_away_fails_its_job_and_no_other(dsn: str) -> None:
    async def fails(job: Job) -> str:
        if job.prompt == "far":
            raise Retry(1e10)
        return "fine"

    async with working(dsn, fails) as (scheduler, _):
        far, fine = [
            await scheduler.enqueue("acme", prompt, policy=Policy(max_wait=None))
            for prompt in ("far", "fine")
        ]
        with pytest.raises(JobFailed, match="ValueError"):
            await far.result()
        assert await fine.result() == "fine"


async def test_a_result_that_is_not_json_is_a_failed_job(dsn: str) -> None:
    async def odd(job: Job) -> object:
        return object()

    async with working(dsn, odd) as (scheduler, _):
        with pytest.raises(JobFailed, match="result_is_not_json"):
            await scheduler.submit("acme", "x")


async def test_retry_repeats_until_the_attempts_are_used_up(dsn: str) -> None:
    attempts: list[int] = []

    async def again(job: Job) -> None:
        attempts.append(job.attempt)
        raise Retry(0.01)

    async with working(dsn, again, max_attempts=3) as (scheduler, _):
        with pytest.raises(JobFailed) as failed:
            await scheduler.submit("acme", "x")
        assert attempts == [1, 2, 3]
        assert failed.value.attempts == 3


async def test_a_refusal_upstream_is_no_attempt_and_is_not_charged_again(dsn: str) -> None:
    tries: list[int] = []

    async def refused(job: Job) -> str:
        tries.append(job.tries)
        if len(tries) < 4:
            raise Retry(0.01, refused=True)
        return "done"

    async with working(dsn, refused, Quota(Rate(1, per=3600, burst=1)), max_attempts=2) as (scheduler, _):
        assert await scheduler.submit("acme", "x") == "done"
        assert tries == [1, 2, 3, 4]
        assert -0.1 < (await scheduler.statistics("acme")).levels["requests"] < 0.1


async def test_usage_replaces_the_estimate(dsn: str) -> None:
    async def settles(job: Job) -> str:
        job.settle(Usage(0, 0, 0))
        return "free"

    async with working(dsn, settles, Quota(Rate(1, per=3600, burst=5))) as (scheduler, _):
        await scheduler.submit("acme", "x", cost=Cost(requests=3))
        assert (await scheduler.statistics("acme")).levels["requests"] == 5.0


async def test_a_timeout_cancels_the_handler(dsn: str) -> None:
    cancelled = asyncio.Event()

    async def slow(job: Job) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with working(dsn, slow) as (scheduler, _):
        with pytest.raises(DeadlineExceeded):
            await scheduler.submit("acme", "x", timeout=0.2)
        await asyncio.wait_for(cancelled.wait(), 5)


async def test_jobs_of_one_session_run_one_after_the_other(dsn: str) -> None:
    running, most, order = 0, 0, []

    async def watches(job: Job) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(job.prompt)
        await asyncio.sleep(0.005)
        running -= 1

    async with working(dsn, watches) as (scheduler, _):
        tickets = [await scheduler.enqueue("acme", str(n), session="chat") for n in range(6)]
        await asyncio.gather(*(ticket.result() for ticket in tickets))
    assert most == 1
    assert order == [str(n) for n in range(6)]


async def test_results_are_pruned_when_they_were_kept_long_enough(dsn: str) -> None:
    store = PostgresStore(dsn, keep=0.001)
    async with working(dsn) as (scheduler, _), store:
        ticket = await scheduler.enqueue("acme", "x")
        await ticket.result()
        kept = await scheduler.enqueue("acme", "y")
        while not await store.prune():
            pass
        with pytest.raises(LookupError):
            await scheduler.ticket(ticket.id, tenant="acme")
        assert kept.id != ticket.id


async def test_a_connection_to_what_has_become_a_standby_is_left(dsn: str) -> None:
    """A worker tries again by itself; a call of submit raises once."""
    standby = "set session characteristics as transaction read only"
    async with working(dsn) as (scheduler, worker):
        assert await scheduler.submit("acme", "before")
        for store in (worker._store, scheduler.store):  # type: ignore[attr-defined]
            async with store._connections.connection() as connection:
                await connection.execute(standby)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await scheduler.submit("acme", "refused")
        assert (await scheduler.submit("acme", "after"))["prompt"] == "after"
        assert (await scheduler.statistics()).done == 2
