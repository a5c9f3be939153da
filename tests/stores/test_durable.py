"""The scheduler over PostgreSQL, with a worker beside it: what a caller sees."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import asyncpg
import pytest

from scheduler import (
    Cost,
    ErrRateLimited,
    Job,
    Policy,
    Quota,
    QuotaExceeded,
    Rate,
    Scheduler,
    SchedulerClosed,
)
from scheduler.stores.postgres import PostgresStore
from tests.stores.working import EXAMPLE, working


async def test_a_result_comes_back_to_whoever_submitted(dsn: str) -> None:
    async with working(dsn) as (scheduler, _):
        assert await scheduler.submit("acme", "hello") == {"prompt": "hello", "attempt": 1}
        blocks = [{"type": "text", "text": "hé"}]
        assert (await scheduler.submit("acme", blocks))["prompt"] == blocks


async def test_many_at_once_are_all_answered_with_their_own_result(dsn: str) -> None:
    async with working(dsn) as (scheduler, _):
        results = await asyncio.gather(*(scheduler.submit(f"t{n % 7}", str(n)) for n in range(300)))
        assert [result["prompt"] for result in results] == [str(n) for n in range(300)]
        assert (await scheduler.statistics()).done == 300


async def test_the_example_everyone_knows_is_promised_exactly(dsn: str) -> None:
    """Rate 2/s, burst 5, eight at one instant: nobody runs them, so that the promise alone is looked at."""
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as scheduler:
        tickets = [await scheduler.enqueue("acme", "Say hi") for _ in range(8)]
        assert [ticket.position for ticket in tickets] == list(range(8))
        waits = [ticket.wait for ticket in tickets]
        assert waits[:5] == [0.0] * 5
        # The arrivals are some milliseconds apart, the slots are not.
        assert sorted(waits) == waits
        assert waits[7] <= 1.5


async def test_strict_refuses_with_different_times(dsn: str) -> None:
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE, policy=Policy.strict()) as scheduler:
        for _ in range(5):
            await scheduler.enqueue("acme", "finds a permit, though no worker is there to take the job")
        again = []
        for _ in range(3):
            with pytest.raises(ErrRateLimited, match="retry after") as refused:
                await scheduler.submit("acme", "finds none")
            assert refused.value.reason == "strict"
            again.append(refused.value.retry_after)
        assert 0 < again[0] <= 0.5
        # Half a second apart, less the time that passed between the calls.
        assert again == sorted(again)
        assert again[2] - again[0] > 0.5


async def test_a_cost_above_the_burst_can_never_fit(dsn: str) -> None:
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as scheduler:
        with pytest.raises(QuotaExceeded, match=r"cost 6 can never fit requests of burst 5"):
            await scheduler.submit("acme", "large", cost=Cost(requests=6))
        assert (await scheduler.statistics("acme")).waiting == 0


async def test_cancelling_submit_withdraws_the_job(dsn: str) -> None:
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as scheduler, asyncio.TaskGroup() as group:
        call = group.create_task(scheduler.submit("acme", "x"))
        while not (await scheduler.statistics("acme")).waiting:
            pass
        call.cancel()
        while (await scheduler.statistics("acme")).waiting:
            pass
    assert call.cancelled()


async def test_cancelling_a_ticket_s_result_withdraws_nothing(dsn: str) -> None:
    async with working(dsn) as (scheduler, _), asyncio.TaskGroup() as group:
        ticket = await scheduler.enqueue("acme", "x")
        waiting = group.create_task(ticket.result())
        await asyncio.sleep(0)
        waiting.cancel()
        assert (await ticket.result())["prompt"] == "x"


async def test_a_ticket_is_found_again_from_another_process_by_its_tenant_only(dsn: str) -> None:
    async with working(dsn) as (scheduler, _), Scheduler(store=PostgresStore(dsn)) as other:
        ticket = await scheduler.enqueue("acme", "x")
        found = await other.ticket(ticket.id, tenant="acme")
        assert (await found.result())["prompt"] == "x"
        with pytest.raises(LookupError):
            await other.ticket(ticket.id, tenant="zeta")
        for number in ("nonsense", "0", "9" * 19, "9" * 20, "9" * 5000):
            with pytest.raises(LookupError, match="job: tenant 'acme' has none with id"):
                await other.ticket(number, tenant="acme")


async def test_a_key_is_accepted_once(dsn: str) -> None:
    runs: list[str] = []

    async def counts(job: Job) -> int:
        runs.append(job.id)
        return len(runs)

    async with working(dsn, counts) as (scheduler, _):
        calls = [scheduler.submit("acme", "x", key="order-7") for _ in range(5)]
        assert await asyncio.gather(*calls) == [1] * 5
        assert await scheduler.submit("zeta", "x", key="order-7") == 2
        with pytest.raises(ValueError, match=r"key: 'order-7' was used before"):
            await scheduler.submit("acme", "another prompt", key="order-7")
        first, again = [await scheduler.enqueue("acme", "y", key="order-8") for _ in range(2)]
        assert (first.id, first.new) == (again.id, True)
        assert not again.new
        assert await again.result() == 3
    assert len(runs) == 3


async def test_a_job_is_accepted_with_the_caller_s_own_transaction(dsn: str) -> None:
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as scheduler:
        connection = await asyncpg.connect(dsn)
        try:
            transaction = connection.transaction()
            await transaction.start()
            lost = await scheduler.enqueue("acme", "x", connection=connection)
            await transaction.rollback()
            with pytest.raises(LookupError):
                await scheduler.ticket(lost.id, tenant="acme")
            async with connection.transaction():
                kept = await scheduler.enqueue("acme", "x", connection=connection)
            assert (await scheduler.ticket(kept.id, tenant="acme")).id == kept.id
        finally:
            await connection.close()
        assert (await scheduler.statistics("acme")).waiting == 1


async def test_a_quota_set_by_hand_moves_who_waits_and_fails_who_never_fits(dsn: str) -> None:
    async with working(dsn, quota=Quota(Rate(1, per=3600, burst=3))) as (scheduler, _):
        await scheduler.submit("acme", "takes the burst", cost=Cost(requests=3))
        small = await scheduler.enqueue("acme", "small", policy=Policy(max_wait=None))
        large = await scheduler.enqueue("acme", "large", cost=Cost(requests=3), policy=Policy(max_wait=None))
        await scheduler.set_quota("acme", Quota(Rate(1000, burst=2)))
        assert (await small.result())["prompt"] == "small"
        with pytest.raises(QuotaExceeded):
            await large.result()


async def test_a_closed_scheduler_accepts_nothing_and_its_jobs_still_run(dsn: str) -> None:
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as first:
        ticket = await first.enqueue("acme", "x")
    with pytest.raises(SchedulerClosed):
        await first.submit("acme", "x")
    async with working(dsn) as (scheduler, _):
        found = await scheduler.ticket(ticket.id, tenant="acme")
        assert (await found.result())["prompt"] == "x"


@pytest.mark.parametrize(
    ("wishes", "text"),
    [
        ({"key": ""}, "key: must have 1 to 512 characters, got 0"),
        ({"key": 7}, "key: must be"),
        ({"key": "k\0"}, r"key: must be valid Unicode without NUL, got 'k\\x00'"),
        ({"session": "\ud800"}, r"session: must be valid Unicode without NUL, got '\\ud800'"),
        ({"timeout": 0}, "timeout: must be above 0"),
        ({"timeout": 1e10}, "timeout: must be at most 4611686018 seconds, got 10000000000.0"),
        ({"gate": "x"}, "gate: must be one of"),
    ],
)
async def test_bad_arguments_are_named(dsn: str, wishes: dict[str, Any], text: str) -> None:
    async with Scheduler(store=PostgresStore(dsn)) as scheduler:
        with pytest.raises((ValueError, TypeError), match=text):
            await scheduler.submit("acme", "x", **wishes)


async def test_closing_tells_whoever_waits_and_keeps_the_job(dsn: str) -> None:
    scheduler = Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE)
    async with asyncio.TaskGroup() as group, scheduler:  # the scheduler is closed first
        ticket = await scheduler.enqueue("acme", "x")
        call = group.create_task(outcome(ticket.result()))
        await scheduler.statistics()
    assert isinstance(call.result(), SchedulerClosed)
    async with working(dsn) as (other, _):
        found = await other.ticket(ticket.id, tenant="acme")
        assert (await found.result())["prompt"] == "x"


async def outcome(call: Awaitable[Any]) -> Any:
    """The result of a call, or its exception."""
    try:
        return await call
    except Exception as error:
        return error
