"""The store is down, and calls are refused with a reason until it is back."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from scheduler import ErrRateLimited, Outage, Scheduler, SchedulerClosed
from scheduler.core.policy import Reason
from scheduler.core.signals import What
from scheduler.http import WaitlineMiddleware
from scheduler.stores.postgres import PostgresStore
from tests.stores.callers import rows, until
from tests.stores.outages import (
    HOUR,
    REFUSE,
    Mortal,
    fall,
    known_down,
    level,
    mortal,
    mortal_server,
    refused,
    rise,
    watched,
)

__all__ = ["mortal", "mortal_server"]


async def test_calls_are_refused_with_a_reason_until_the_store_is_back(mortal: Mortal) -> None:
    async with watched(mortal.dsn, REFUSE) as (scheduler, ears):
        (await scheduler.admit("acme").__aenter__()).settle()
        await scheduler.enqueue("acme", "x")
        before = await scheduler.statistics()
        assert before.store is not None
        assert (before.store.down, before.store.outages, before.store.refused) == (None, 0, 0)
        mortal.kill()
        calls: list[Any] = [
            scheduler.admit("acme").__aenter__(),
            scheduler.submit("acme", "y"),
            scheduler.enqueue("acme", "z", key="order-7"),
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        # One that was under way when the connection broke, and has no key, may have been accepted.
        reasons = [answer.reason for answer in answers if isinstance(answer, ErrRateLimited)]
        assert reasons == [Reason.STORE_DOWN] * len(reasons)
        assert len(reasons) >= 2
        again = [await refused(scheduler) for _ in range(20)]
        assert {error.reason for error in again} == {"store_down"}
        during = await scheduler.statistics()
        assert during.store is not None
        assert during.store.down is not None
        assert during.store.down > 0
        assert (during.store.outages, during.store.refused) == (1, 20 + len(reasons))
        assert during.refused == {Reason.STORE_DOWN: 20 + len(reasons)}
        await rise(scheduler, ears, mortal)
        assert [news.what for news in ears.heard] == [What.STORE_DOWN, What.STORE_BACK]
        assert ears.heard[1].value == pytest.approx((ears.heard[1].time - ears.heard[0].time) / 1e9, abs=1e-3)
        after = await scheduler.statistics()
        assert after.store is not None
        assert after.store.down is None
        assert after.waiting == 1
        assert await level(scheduler) == pytest.approx(7, abs=0.01)
        assert await rows(mortal.dsn, "select count(*) from waitline.job where key is not null") == [(0,)]


async def test_those_refused_one_after_another_come_back_one_after_another(mortal: Mortal) -> None:
    """When the store is tried again, and then by their tenant's rate."""
    async with watched(mortal.dsn, REFUSE) as (scheduler, ears):
        await fall(scheduler, ears, mortal)
        now = asyncio.get_running_loop().time
        times = [now() + (await refused(scheduler)).retry_after for _ in range(11)]
        assert times == sorted(times)
        assert len(set(times)) == 11
        assert all(0 < time - now() <= 1.2 for time in times[:8])  # the burst
        assert [round((time - times[7]) / 3600) for time in times[8:]] == [1, 2, 3]


async def test_without_a_word_about_it_calls_are_refused(mortal: Mortal) -> None:
    async with watched(mortal.dsn, None) as (scheduler, _):
        mortal.kill()
        await known_down(scheduler)
        assert (await refused(scheduler)).reason == "store_down"


async def test_a_restart_within_the_patience_is_ridden_out(mortal: Mortal) -> None:
    async with watched(mortal.dsn, Outage.refuse(patience=15)) as (scheduler, ears):
        mortal.kill()
        async with asyncio.TaskGroup() as group:
            admitted = group.create_task(scheduler.admit("acme").__aenter__())
            accepted = group.create_task(scheduler.enqueue("zeta", "x", key="order-7"))
            await mortal.start()
        admitted.result().settle()
        await until(scheduler, running=0)
        assert (await scheduler.statistics("zeta")).waiting == 1
        assert accepted.result().new
        assert not ears.heard


async def test_a_store_that_does_not_answer_at_all_is_down(mortal: Mortal) -> None:
    """Its connections stand, so that nobody would hear of it for a minute."""
    async with watched(mortal.dsn, REFUSE) as (scheduler, ears):
        (await scheduler.admit("acme").__aenter__()).settle()
        await until(scheduler, running=0)
        frozen = mortal.freeze()
        try:
            assert (await refused(scheduler)).reason == "store_down"
        finally:
            mortal.thaw(frozen)
        await ears.until(What.STORE_BACK)
        await until(scheduler, waiting=0, running=0)
        # The call that was refused may have been let in, and what it had is given back.
        while await level(scheduler) < 6.9:
            pass


async def test_a_job_without_a_key_that_may_be_accepted_is_not_called_refused(
    mortal: Mortal,
) -> None:
    class Deaf(PostgresStore):
        """Commits, and does not hear that it has."""

        async def submit(self, request: Any) -> Any:
            await super().submit(request)
            raise ConnectionResetError

    store = Deaf(mortal.dsn)
    async with Scheduler(store=store, quotas=HOUR, outage=REFUSE) as scheduler:
        with pytest.raises(ConnectionResetError):
            await scheduler.enqueue("acme", "x")
        assert (await scheduler.statistics("acme")).waiting == 1
        # With one it is asked again, and accepted once.
        with pytest.raises(ErrRateLimited, match="store_down"):
            await scheduler.enqueue("acme", "y", key="order-7")
        found = await rows(mortal.dsn, "select count(*) from waitline.job where key = 'order-7'")
        assert found == [(1,)]


async def test_whoever_stands_in_line_keeps_its_place(mortal: Mortal) -> None:
    async with watched(mortal.dsn, REFUSE) as (scheduler, ears):
        first = [await scheduler.admit("acme").__aenter__() for _ in range(8)]
        async with asyncio.TaskGroup() as group:
            waiter = group.create_task(scheduler.admit("acme").__aenter__())
            await until(scheduler, waiting=1)
            await fall(scheduler, ears, mortal)
            assert not waiter.done()
            await rise(scheduler, ears, mortal)
            for grant in first:
                grant.settle(None)
            await scheduler.set_quota("acme", HOUR)
            waiter.cancel()
        await until(scheduler, waiting=0, running=0)


async def test_a_request_is_answered_that_it_is_not_its_fault(mortal: Mortal) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with watched(mortal.dsn, REFUSE) as (scheduler, ears):
        served = WaitlineMiddleware(app, scheduler=scheduler, tenant=lambda scope: "acme")
        transport = httpx2.ASGITransport(app=served)
        async with httpx2.AsyncClient(transport=transport, base_url="http://web") as client:
            assert (await client.get("/")).status_code == 200
            await fall(scheduler, ears, mortal)
            answer = await client.get("/")
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert answer.json()["error"]["details"]["error_code"] == "store_down"
            await rise(scheduler, ears, mortal)
            assert (await client.get("/")).status_code == 200
        counted = await scheduler.statistics()
        assert counted.store is not None
        assert counted.store.refused == 1


async def test_closing_while_calls_look_for_the_store(mortal: Mortal) -> None:
    async with watched(mortal.dsn, Outage.refuse(patience=60)) as (scheduler, _):
        mortal.kill()
        call = asyncio.ensure_future(scheduler.admit("acme").__aenter__())
        await asyncio.sleep(0.1)
        await scheduler.__aexit__(LookupError, LookupError(), None)
        with pytest.raises(SchedulerClosed):
            await call
