"""Many jobs in one call, over a store: one transaction, and an answer each."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import asyncpg
import pytest

from scheduler import (
    Cost,
    ErrRateLimited,
    Policy,
    Quota,
    QuotaExceeded,
    Rate,
    Scheduler,
    SchedulerClosed,
    Ticket,
)
from scheduler.runtime import durable
from scheduler.stores.postgres import PostgresStore
from tests.stores.callers import rows
from tests.stores.outages import REFUSE, Mortal, known_down, mortal, mortal_server, watched
from tests.stores.working import EXAMPLE, working

__all__ = ["mortal", "mortal_server"]

TRANSACTIONS = "select count(distinct xmin::text) from waitline.job"


def asked(*prompts: str, **wishes: Any) -> list[dict[str, Any]]:
    return [{"tenant": "acme", "prompt": prompt, **wishes} for prompt in prompts]


def tickets(answers: list[Any]) -> list[Ticket]:
    assert [answer for answer in answers if not isinstance(answer, Ticket)] == []
    return answers


async def test_every_job_is_run_and_answered_for(dsn: str) -> None:
    async with working(dsn) as (scheduler, _):
        jobs = [{"tenant": f"t{number % 7}", "prompt": str(number)} for number in range(300)]
        found = tickets(await scheduler.enqueue_many(jobs))
        results = await asyncio.gather(*(ticket.result() for ticket in found))
        assert [result["prompt"] for result in results] == [str(number) for number in range(300)]


@pytest.mark.parametrize(
    "wishes", [{}, {"session": "s"}, {"cost": Cost(1)}], ids=["plain", "session", "cost"]
)
async def test_all_of_them_are_one_transaction(dsn: str, wishes: dict[str, Any]) -> None:
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as scheduler:
        await scheduler.enqueue("acme", "the tenant is known")
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
            await pool.execute("truncate waitline.job")
            tickets(await scheduler.enqueue_many(asked("a", "b", "c", **wishes)))
            tickets(await scheduler.enqueue_many([*asked("d"), {"tenant": "zeta", "prompt": "e", **wishes}]))
            assert await pool.fetchval(TRANSACTIONS) == 2


async def test_a_refused_one_is_answered_with_its_error_and_the_rest_is_accepted(dsn: str) -> None:
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as scheduler:
        jobs = [
            *asked(*"abcde"),
            *asked("f", "g", policy=Policy.strict()),
            *asked("h", cost=Cost(6)),
            *asked("i"),
        ]
        answers = await scheduler.enqueue_many(jobs)
        assert [type(answer).__name__ for answer in answers[5:]] == [
            *["ErrRateLimited"] * 2,
            "QuotaExceeded",
            "DurableTicket",
        ]
        times = [answer.retry_after for answer in answers if isinstance(answer, ErrRateLimited)]
        assert times == [0.5, 1.0]
        assert isinstance(answers[7], QuotaExceeded)
        last = answers[8]
        assert isinstance(last, Ticket)
        assert (last.position, last.wait) == (5, 0.5)
        assert (await scheduler.statistics("acme")).waiting == 6


async def test_keys_are_accepted_once(dsn: str) -> None:
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as scheduler:
        first = await scheduler.enqueue("acme", "x", key="one")
        jobs = [
            *asked("x", key="one"),
            *asked("y", key="two"),
            *asked("y", key="two"),
            *asked("z", key="two"),
        ]
        known, new, again, wrong = await scheduler.enqueue_many(jobs)
        assert isinstance(wrong, ValueError)
        assert "another prompt or session" in str(wrong)
        assert [ticket.new for ticket in tickets([known, new, again])] == [False, True, False]
        assert isinstance(known, Ticket)
        assert known.id == first.id
        assert isinstance(new, Ticket)
        assert isinstance(again, Ticket)
        assert new.id == again.id
        repeated = await scheduler.enqueue_many(jobs[:3])
        assert [ticket.new for ticket in tickets(repeated)] == [False] * 3
        assert (await scheduler.statistics("acme")).waiting == 2


@pytest.mark.parametrize("wishes", [{}, {"key": "k"}], ids=["plain", "general"])
async def test_they_are_part_of_the_caller_s_transaction(dsn: str, wishes: dict[str, Any]) -> None:
    jobs = [*asked("a", **wishes), {"tenant": "zeta", "prompt": "b"}]
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as scheduler:
        tickets(await scheduler.enqueue_many([*asked("known"), {"tenant": "zeta", "prompt": "known"}]))
        connection = await asyncpg.connect(dsn)
        try:
            transaction = connection.transaction()
            await transaction.start()
            tickets(await scheduler.enqueue_many(jobs, connection=connection))
            assert (await scheduler.statistics()).waiting == 2
            await transaction.rollback()
            assert (await scheduler.statistics()).waiting == 2
            async with connection.transaction():
                tickets(await scheduler.enqueue_many(jobs, connection=connection))
            assert (await scheduler.statistics()).waiting == 4
        finally:
            await connection.close()


async def statements(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, jobs: list[Any]) -> int:
    """How many statements a call takes, apart from what the store does beside it."""
    count = 0
    asking = ContextVar("asking", default=False)
    execute = vars(asyncpg.Connection)["_execute"]

    async def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += asking.get()
        return await execute(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Connection, "_execute", counted)
        asking.set(True)
        tickets(await scheduler.enqueue_many(jobs))
        asking.set(False)
    return count


@pytest.mark.parametrize(("wishes", "most"), [({}, 1), ({"session": "s", "priority": 1}, 12)])
async def test_a_call_is_a_bounded_number_of_statements(
    dsn: str, monkeypatch: pytest.MonkeyPatch, wishes: dict[str, Any], most: int
) -> None:
    quota = Quota(Rate(2, burst=5))
    async with Scheduler(store=PostgresStore(dsn), quotas=quota, policy=Policy(max_wait=None)) as scheduler:
        few, many = (
            [{"tenant": f"t{number % 50}", "prompt": "x", **wishes} for number in range(size)]
            for size in (5, 300)
        )
        tickets(await scheduler.enqueue_many(many))  # by now all tenants are known
        found = [await statements(scheduler, monkeypatch, jobs) for jobs in (few, many)]
        assert 0 < found[0] <= most
        assert found[1] == found[0]


async def test_who_is_cancelled_meanwhile_withdraws_all_of_them(dsn: str) -> None:
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as scheduler:
        await scheduler.enqueue("acme", "another's")
        connection = await asyncpg.connect(dsn)
        try:
            async with connection.transaction():
                await connection.execute("select from waitline.tenant for update")
                call = asyncio.create_task(scheduler.enqueue_many(asked("a", "b")))
                while not await connection.fetchval("select count(*) from pg_locks where not granted"):
                    pass
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            while await connection.fetchval("select count(*) from waitline.job where state = 4") < 2:
                pass
            assert (await scheduler.statistics("acme")).waiting == 1
        finally:
            await connection.close()


async def test_a_limit_on_tokens_that_only_the_store_knows_counts_for_all(dsn: str) -> None:
    """They are asked again with a count, all together."""
    tokens = Quota(Rate(100, burst=100), input_tokens=Rate(1, burst=1000))
    async with (
        Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as operator,
        Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as scheduler,
    ):
        await scheduler.enqueue("zeta", "x")
        await operator.set_quota("acme", tokens)
        tickets(
            await scheduler.enqueue_many([*asked("x" * 400), {"tenant": "zeta", "prompt": "y"}, *asked("z")])
        )
        found = await rows(dsn, "select tenant, counted from waitline.job order by id")
        assert [tuple(row) for row in found] == [("zeta", None), ("acme", 107), ("zeta", None), ("acme", 8)]
        assert len(await rows(dsn, "select distinct xmin::text from waitline.job")) == 2


async def test_bad_arguments_are_named_and_a_closed_scheduler_takes_none(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "MOST_BYTES", 50)
    async with Scheduler(store=PostgresStore(dsn), quotas=EXAMPLE) as scheduler:
        with pytest.raises(ValueError, match=r"^jobs\[1\]: key: must have 1 to 512 characters, got 0"):
            await scheduler.enqueue_many([*asked("a"), *asked("b", key="")])
        with pytest.raises(ValueError, match=r"^jobs: must have at most 50 bytes in all prompts, got 52"):
            await scheduler.enqueue_many(asked("x" * 24, "y" * 24))
        assert await scheduler.enqueue_many([]) == []
        assert (await scheduler.statistics()).tenants == 0
    with pytest.raises(SchedulerClosed):
        await scheduler.enqueue_many(asked("a"))


async def test_a_tenant_without_a_quota_is_named_before_anything_is_accepted(dsn: str) -> None:
    async with Scheduler(store=PostgresStore(dsn), quotas={"acme": EXAMPLE}) as scheduler:
        with pytest.raises(ValueError, match=r"^jobs\[1\]: tenant: no entry in quotas for 'bolt'"):
            await scheduler.enqueue_many([*asked("a"), {"tenant": "bolt", "prompt": "b"}, *asked("c")])
        assert (await scheduler.statistics()).tenants == 0


async def test_while_the_store_is_down_all_are_refused_at_different_times(mortal: Mortal) -> None:
    async with watched(mortal.dsn, REFUSE) as (scheduler, _):
        mortal.kill()
        await known_down(scheduler)
        answers = await scheduler.enqueue_many(asked("a", "b", "c"))
        times = [answer.retry_after for answer in answers if isinstance(answer, ErrRateLimited)]
        assert {answer.reason for answer in answers if isinstance(answer, ErrRateLimited)} == {"store_down"}
        assert len(set(times)) == 3
        assert times == sorted(times)
        await mortal.start()
