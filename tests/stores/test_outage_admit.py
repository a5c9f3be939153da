"""The store is down, and a share of each limit is granted in process, and recorded afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from scheduler import Cost, ErrRateLimited, Outage, Policy, Quota, Rate, Scheduler, Usage
from scheduler.core.entry import RUNNING
from scheduler.core.signals import What
from scheduler.runtime.grant import Cover, current_turn
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import Connections
from scheduler.stores.postgres.returning import Returning
from tests.stores.callers import rows, until
from tests.stores.outages import (
    HOUR,
    QUARTER,
    Mortal,
    fall,
    level,
    mortal,
    mortal_server,
    refused,
    rise,
    watched,
)

__all__ = ["mortal", "mortal_server"]

STRICT = Policy.strict()


async def test_a_share_of_the_limit_is_granted_exactly(mortal: Mortal) -> None:
    """A quarter of one in an hour with a burst of eight: two at once, and one every four hours."""
    async with watched(mortal.dsn, QUARTER) as (scheduler, ears):
        await fall(scheduler, ears, mortal)
        grants = [await scheduler.admit("acme", policy=STRICT).__aenter__() for _ in range(2)]
        assert [grant.waited for grant in grants] == [0.0, 0.0]
        errors = [await refused(scheduler, policy=STRICT) for _ in range(3)]
        assert [error.reason for error in errors] == ["strict"] * 3
        assert [round(error.retry_after / 3600, 2) for error in errors] == [4, 8, 12]
        quote = await scheduler.quote("acme")
        assert round(quote.wait / 3600, 2) == 4
        assert (await scheduler.current_levels("acme"))["requests"][:2] == (2, Fraction(1, 14400))
        # What fits the burst, but no share of it, is for the store.
        assert (await refused(scheduler, cost=Cost(3))).reason == "store_down"
        found = await scheduler.statistics()
        assert found.store is not None
        assert (found.running, found.store.admitted, found.store.unrecorded) == (2, 2, 2)
        for grant in grants:
            grant.settle()
        await rise(scheduler, ears, mortal)
        assert await level(scheduler) == pytest.approx(6, abs=0.01)


async def test_what_was_granted_is_charged_once_and_who_runs_is_known(mortal: Mortal) -> None:
    async with watched(mortal.dsn, Outage.admit(1, patience=0.3)) as (scheduler, ears):
        (await scheduler.admit("acme").__aenter__()).settle()
        await until(scheduler, running=0)
        await fall(scheduler, ears, mortal)
        ended = [await scheduler.admit("acme").__aenter__() for _ in range(3)]
        ended[0].settle()
        ended[1].settle(Usage(2, 0, 0))
        ended[2].settle(Usage(0, 0, 0))
        runs = [await scheduler.admit("acme").__aenter__() for _ in range(2)]
        await rise(scheduler, ears, mortal)
        assert await level(scheduler) == pytest.approx(8 - 1 - 3 - 2, abs=0.01)
        found = await scheduler.statistics("acme")
        assert found.store is not None
        assert (found.running, found.store.unrecorded, found.store.admitted) == (2, 0, 5)
        runs[0].settle(Usage(0, 0, 0))
        runs[1].settle()
        runs[1].settle(Usage(0, 0, 0))
        await until(scheduler, running=0)
        assert await level(scheduler) == pytest.approx(3, abs=0.01)
        kept = "select state, kind, cost, home from waitline.job order by id"
        assert await rows(mortal.dsn, kept) == [(2, "outage", [5, 0, 0], None)]


async def test_the_next_claims_wait_for_what_was_used(mortal: Mortal) -> None:
    """The whole burst goes during the outage: another process finds none of it left."""
    async with (
        watched(mortal.dsn, Outage.admit(1, patience=0.3)) as (scheduler, ears),
        Scheduler(store=PostgresStore(mortal.dsn), quotas=HOUR) as other,
    ):
        await fall(scheduler, ears, mortal)
        for _ in range(8):
            async with scheduler.admit("acme", policy=STRICT):
                pass
        await rise(scheduler, ears, mortal)
        with pytest.raises(ErrRateLimited, match="retry after 35") as error:
            await other.admit("acme", policy=STRICT).__aenter__()
        assert error.value.reason == "strict"


async def test_a_record_whose_answer_is_lost_is_not_charged_twice(mortal: Mortal) -> None:
    lost = 0

    class Deaf(Returning):
        """Commits, and does not hear that it has, the first two times."""

        async def record(self, debts: Any) -> Any:
            nonlocal lost
            found = await super().record(debts)
            if debts and lost < 2:
                lost += 1
                raise ConnectionResetError
            return found

    async with watched(mortal.dsn, Outage.admit(1, patience=0.3)) as (scheduler, ears):
        scheduler.store.home.__class__ = Deaf  # type: ignore[attr-defined]
        await fall(scheduler, ears, mortal)
        async with scheduler.admit("acme", cost=Cost(2)):
            await rise(scheduler, ears, mortal)
            assert lost == 2
            assert await level(scheduler) == pytest.approx(6, abs=0.01)
            await until(scheduler, running=1)
        await until(scheduler, running=0)
        assert await level(scheduler) == pytest.approx(6, abs=0.01)


async def test_a_caller_that_was_let_in_unheard_is_given_back(mortal: Mortal) -> None:
    """The database dies after it has granted, and before that is heard: this process grants it, once."""

    class Deaf(Connections):
        @asynccontextmanager
        async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
            async with super().transaction() as connection:
                yield connection
            self.__class__ = Connections  # type: ignore[assignment]
            mortal.kill()
            raise ConnectionResetError

    async with watched(mortal.dsn, QUARTER) as (scheduler, ears):
        scheduler.store._connections.__class__ = Deaf  # type: ignore[attr-defined]
        async with scheduler.admit("acme"):
            await ears.until(What.STORE_DOWN)
            await rise(scheduler, ears, mortal)
            assert (await scheduler.statistics("acme")).running == 1
            assert await level(scheduler) == pytest.approx(7, abs=0.01)


async def test_who_waits_here_goes_to_the_store_when_it_is_back(mortal: Mortal) -> None:
    order: list[int] = []

    async def ask(scheduler: Scheduler, number: int) -> None:
        async with scheduler.admit("acme"):
            order.append(number)

    async with watched(mortal.dsn, QUARTER) as (scheduler, ears):
        async with asyncio.TaskGroup() as group:
            await fall(scheduler, ears, mortal)
            for _ in range(2):
                (await scheduler.admit("acme").__aenter__()).settle()
            for number in range(6):
                group.create_task(ask(scheduler, number))
            await until(scheduler, waiting=6)
            assert not order
            await rise(scheduler, ears, mortal)
        await until(scheduler, waiting=0, running=0)
        assert order == list(range(6))
        assert await level(scheduler) == pytest.approx(0, abs=0.01)


async def test_who_stood_in_line_before_is_first_here_and_keeps_its_place(mortal: Mortal) -> None:
    order: list[str] = []

    async def ask(scheduler: Scheduler, name: str) -> None:
        async with scheduler.admit("acme"):
            order.append(name)

    async with watched(mortal.dsn, QUARTER) as (scheduler, ears), asyncio.TaskGroup() as group:
        large = await scheduler.admit("acme", cost=Cost(8)).__aenter__()
        for number in range(3):
            group.create_task(ask(scheduler, f"before {number}"))
            await until(scheduler, waiting=number + 1)
        await fall(scheduler, ears, mortal)
        late = group.create_task(ask(scheduler, "late"))
        await until(scheduler, waiting=2)  # the burst of two went to those who had been there
        assert order == ["before 0", "before 1"]
        await rise(scheduler, ears, mortal)
        await until(scheduler, waiting=2, running=1)
        large.settle(Usage(4, 0, 0))
        await asyncio.wait([late])
        assert order == ["before 0", "before 1", "before 2", "late"]
        await until(scheduler, waiting=0, running=0)
        assert await level(scheduler) == pytest.approx(0, abs=0.01)


async def test_a_caller_that_is_cancelled_meanwhile_leaves_nothing(mortal: Mortal) -> None:
    async with watched(mortal.dsn, QUARTER) as (scheduler, ears), asyncio.TaskGroup() as group:
        first = await scheduler.admit("acme", cost=Cost(8)).__aenter__()
        before = group.create_task(scheduler.admit("acme", cost=Cost(2)).__aenter__())
        await until(scheduler, waiting=1)
        await fall(scheduler, ears, mortal)
        (await before).settle(Usage(0, 0, 0))
        (await scheduler.admit("acme", cost=Cost(2)).__aenter__()).settle()
        waiter = group.create_task(scheduler.admit("acme").__aenter__())
        await until(scheduler, waiting=1)
        waiter.cancel()
        await asyncio.wait([waiter])
        await until(scheduler, waiting=0)
        await rise(scheduler, ears, mortal)
        first.settle()
        await until(scheduler, waiting=0, running=0)
        assert await level(scheduler) == pytest.approx(-2, abs=0.01)


async def test_an_outage_after_another_does_not_bring_another_burst(mortal: Mortal) -> None:
    async with watched(mortal.dsn, QUARTER) as (scheduler, ears):
        for times in (1, 2):
            await fall(scheduler, ears, mortal, times)
            for _ in range(2 if times == 1 else 0):
                (await scheduler.admit("acme", policy=STRICT).__aenter__()).settle()
            assert (await refused(scheduler, policy=STRICT)).reason == "strict"
            await rise(scheduler, ears, mortal, times)
            assert await level(scheduler) == pytest.approx(6, abs=0.01)


async def test_the_share_is_of_the_quota_that_the_store_had(mortal: Mortal) -> None:
    async with watched(mortal.dsn, QUARTER) as (scheduler, ears):
        await scheduler.set_quota("acme", Quota(Rate(1, per=7200, burst=4), concurrency=9))
        await fall(scheduler, ears, mortal)
        levels = await scheduler.current_levels("acme")
        assert levels["requests"] == (1, Fraction(1, 28800), Fraction(1))
        assert levels["concurrency"] == (2, Fraction(0), Fraction(2))


async def test_later_messages_of_a_run_go_in_its_slot(mortal: Mortal) -> None:
    quota = Quota(Rate(1000, burst=100), concurrency=1)
    message = SimpleNamespace(tenant="acme")
    async with watched(mortal.dsn, QUARTER, quota) as (scheduler, ears):
        await fall(scheduler, ears, mortal)
        async with scheduler.admit("acme") as grant:
            token = current_turn.set(grant)
            assert isinstance(await scheduler.on_before_message(message), Cover)
            later = await scheduler.on_before_message(message)
            assert later is not None
            later.settle()
            current_turn.reset(token)
            await rise(scheduler, ears, mortal)
            await until(scheduler, running=1)
        await until(scheduler, running=0)


async def test_jobs_are_refused_even_so(mortal: Mortal) -> None:
    async with watched(mortal.dsn, QUARTER) as (scheduler, ears):
        await fall(scheduler, ears, mortal)
        with pytest.raises(ErrRateLimited, match="store_down"):
            await scheduler.submit("acme", "x")
        with pytest.raises(ErrRateLimited, match="store_down"):
            await scheduler.enqueue("acme", "x", key="order-7")
        await rise(scheduler, ears, mortal)
        assert await rows(mortal.dsn, "select count(*) from waitline.job") == [(0,)]


async def test_closing_meanwhile_waits_until_all_is_recorded(mortal: Mortal) -> None:
    async with watched(mortal.dsn, QUARTER) as (scheduler, ears):
        await fall(scheduler, ears, mortal)
        (await scheduler.admit("acme").__aenter__()).settle()
        started = asyncio.create_task(mortal.start())
    await started
    async with Scheduler(store=PostgresStore(mortal.dsn), quotas=HOUR) as other:
        assert await level(other) == pytest.approx(7, abs=0.01)


async def test_none_of_those_who_wait_is_let_go_by_the_end_of_another(mortal: Mortal) -> None:
    """The large call goes to the store once that is back, and so does the small one that waits behind it."""
    patient = Policy(max_wait=None)
    async with watched(mortal.dsn, Outage.admit(1, patience=0.3)) as (scheduler, ears):
        (await scheduler.admit("acme").__aenter__()).settle(Usage(0, 0, 0))
        await until(scheduler, running=0)
        await fall(scheduler, ears, mortal)
        first = await scheduler.admit("acme", cost=Cost(5)).__aenter__()

        async def block(cost: Cost) -> str:
            async with scheduler.admit("acme", cost=cost, policy=patient) as grant:
                assert grant.state is RUNNING
            return "done"

        tasks = []
        for cost in (Cost(5), Cost(1)):
            tasks.append(asyncio.create_task(block(cost)))
            await until(scheduler, waiting=len(tasks))
        await rise(scheduler, ears, mortal)
        await until(scheduler, waiting=2, running=1)
        first.settle(Usage(0, 0, 0))
        assert await asyncio.gather(*tasks) == ["done"] * 2
        await until(scheduler, waiting=0, running=0)
