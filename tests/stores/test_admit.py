"""`admit` and the hook over PostgreSQL: callers that run their own work stand in the line of jobs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from scheduler import (
    DeadlineExceeded,
    ErrRateLimited,
    Grant,
    Job,
    JobFailed,
    Policy,
    Quota,
    QuotaExceeded,
    Rate,
    Scheduler,
    SchedulerClosed,
    Usage,
)
from scheduler.core.quota import Cost
from scheduler.http import WaitlineMiddleware
from scheduler.runtime.grant import Cover
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.returning import Returning
from scheduler.worker import Worker
from tests.agent.claudes import in_memory
from tests.http.test_agents import Route, around, get
from tests.stores.callers import FAST_SLOT, PATIENT, rows, until, web
from tests.stores.working import working

HOUR = Quota(Rate(1, per=3600, burst=2))


async def level(scheduler: Scheduler) -> float:
    return (await scheduler.statistics("acme")).levels["requests"]


async def test_two_processes_share_one_bucket_without_a_worker(dsn: str) -> None:
    slots: list[int] = []

    async def ask(scheduler: Scheduler) -> None:
        async with scheduler.admit("acme") as grant:
            slots.append(grant.slot)

    async with web(dsn, Quota(Rate(20, burst=2))) as one, web(dsn, Quota(Rate(20, burst=2))) as other:
        await asyncio.gather(*(ask(scheduler) for scheduler in (one, other) * 4))
        slots.sort()
        for first, start in enumerate(slots):
            for more, end in enumerate(slots[first:]):
                assert end - start >= (more - 1) * 50_000_000 - 1
        await until(one, running=0)


async def test_a_block_settles_once_with_what_it_used(dsn: str) -> None:
    async with web(dsn, HOUR) as scheduler:
        async with scheduler.admit("acme", cost=Cost(2)) as grant:
            assert grant.waited < 1
            assert grant.promised_wait == 0.0
            assert (await scheduler.statistics("acme")).running == 1
            grant.settle(Usage(1, 0, 0))
            grant.settle(Usage(0, 0, 0))
        assert await level(scheduler) == pytest.approx(1, abs=0.01)
        with pytest.raises(LookupError):
            async with scheduler.admit("acme"):
                raise LookupError
        found = await scheduler.statistics("acme")
        assert (found.running, found.waiting) == (0, 0)
        assert await level(scheduler) == pytest.approx(0, abs=0.01)


async def test_strict_refuses_with_different_times_by_the_formula_of_submit(dsn: str) -> None:
    strict = Policy.strict()
    async with web(dsn, HOUR) as scheduler:
        grants = [scheduler.admit("acme", policy=strict) for _ in range(2)]
        for grant in grants:
            await grant.__aenter__()
        again = []
        for turn in range(4):
            admitted = scheduler.admit("acme", policy=strict).__aenter__()
            call = scheduler.submit("acme", "x", policy=strict) if turn % 2 else admitted
            with pytest.raises(ErrRateLimited) as refused:
                await call
            admitted.close()
            again.append(refused.value.retry_after)
        assert [round(wait / 3600) for wait in again] == [1, 2, 3, 4]
        with pytest.raises(QuotaExceeded):
            await scheduler.admit("acme", cost=Cost(3)).__aenter__()
        for grant in grants:
            grant.settle()


async def test_a_slot_that_was_given_back_is_found_free_by_the_next(dsn: str) -> None:
    """Also by a strict one, at once: what ended here is recorded before this process asks again."""
    async with web(dsn, FAST_SLOT) as scheduler:
        for _ in range(20):
            async with scheduler.admit("acme", policy=Policy.strict()):
                pass


async def test_jobs_and_callers_go_in_one_order(dsn: str) -> None:
    order: list[str] = []

    async def handler(job: Job) -> None:
        order.append(str(job.prompt))

    async def ask(scheduler: Scheduler, name: str) -> None:
        async with scheduler.admit("acme"):
            order.append(name)

    async with web(dsn, FAST_SLOT) as scheduler, asyncio.TaskGroup() as group:
        first = scheduler.admit("acme")
        await first.__aenter__()
        for number in range(6):
            if number % 2:
                group.create_task(ask(scheduler, str(number)))
            else:
                await scheduler.enqueue("acme", str(number))
            await until(scheduler, waiting=number + 1)
        async with working(dsn, handler, concurrency=1) as _:
            first.settle()
            await until(scheduler, waiting=0, running=0)
    assert order == [str(number) for number in range(6)]


async def test_a_caller_does_not_pass_a_job_that_waits_for_a_worker(dsn: str) -> None:
    async with web(dsn) as scheduler:
        ticket = await scheduler.enqueue("acme", "x")
        async with asyncio.TaskGroup() as group:
            grant = scheduler.admit("acme")
            entering = group.create_task(grant.__aenter__())
            await until(scheduler, waiting=2)
            for _ in range(5):  # whoever looks again and again grants nobody
                scheduler.store.home.look(0)  # type: ignore[attr-defined]
                assert (await scheduler.statistics("acme")).waiting == 2
            assert ticket.cancel()  # and whoever is behind it hears that it has gone
            await entering
        grant.settle()


async def test_cancelling_a_waiter_withdraws_it_and_those_behind_move_up(dsn: str) -> None:
    async with web(dsn, HOUR) as scheduler, asyncio.TaskGroup() as group:
        large = group.create_task(scheduler.admit("acme", cost=Cost(2)).__aenter__())
        await large
        waiter = group.create_task(scheduler.admit("acme", cost=Cost(2)).__aenter__())
        await until(scheduler, waiting=1)
        waiter.cancel()
        await asyncio.wait([waiter])
        await until(scheduler, waiting=0)
        large.result().settle(Usage(0, 0, 0))
        assert await level(scheduler) == 2.0


async def test_a_grant_that_races_a_cancellation_is_given_back(dsn: str) -> None:
    """It is granted by the time that its caller is cancelled, whatever the caller knows of it."""
    async with web(dsn, HOUR) as scheduler:
        (await scheduler.admit("acme").__aenter__()).settle(Usage(0, 0, 0))
        for steps in range(40):
            task = asyncio.create_task(scheduler.admit("acme").__aenter__())
            for _ in range(steps % 7):
                await scheduler.statistics("acme")
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result().settle(Usage(0, 0, 0))
        while await level(scheduler) != 2.0:  # for ever, if any was lost
            pass
        await until(scheduler, waiting=0, running=0)


async def test_a_deadline_and_a_cancellation_by_hand_end_the_wait(dsn: str) -> None:
    async with web(dsn, HOUR) as scheduler:
        for _ in range(2):
            scheduler_grant = await scheduler.admit("acme").__aenter__()
            scheduler_grant.settle()
        with pytest.raises(ErrRateLimited, match="deadline"):
            await scheduler.admit("acme", timeout=5).__aenter__()
        async with asyncio.TaskGroup() as group:
            waiter = group.create_task(outcome(scheduler.admit("acme")))
            await until(scheduler, waiting=1)
            store = scheduler.store  # type: ignore[attr-defined]
            ((job,),) = await rows(dsn, "select id from waitline.job where home is not null and state = 0")
            await store.cancel(job, "acme")
        assert isinstance(waiter.result(), JobFailed)

    async with web(dsn, FAST_SLOT) as scheduler, scheduler.admit("bolt"):
        with pytest.raises(DeadlineExceeded):
            await scheduler.admit("bolt", timeout=0.2).__aenter__()


async def outcome(grant: Grant) -> object:
    try:
        return await grant.__aenter__()
    except Exception as error:
        return error


async def test_closing_tells_who_waits_and_leaves_nobody_in_line(dsn: str) -> None:
    scheduler = Scheduler(store=PostgresStore(dsn), quotas=HOUR, policy=PATIENT)
    await scheduler.__aenter__()
    for _ in range(2):
        (await scheduler.admit("acme").__aenter__()).settle()
    waiter = asyncio.create_task(outcome(scheduler.admit("acme")))
    await until(scheduler, waiting=1)
    await scheduler.__aexit__(LookupError, LookupError(), None)
    assert isinstance(await waiter, SchedulerClosed)
    assert await rows(dsn, "select waiting, running from waitline.tenant") == [(0, 0)]
    with pytest.raises(SchedulerClosed):
        await scheduler.admit("acme").__aenter__()


async def test_the_hook_waits_outside_a_job_and_the_first_message_of_one_is_free(dsn: str) -> None:
    message = SimpleNamespace(tenant="acme")
    asked: list[object] = []
    store = PostgresStore(dsn)
    async with Scheduler(store=store, quotas=HOUR) as scheduler:

        async def handler(job: Job) -> None:
            asked.append(await scheduler.on_before_message(message))

        grant = await scheduler.on_before_message(message)
        assert isinstance(grant, Grant)
        grant.settle(Usage(0, 0, 0))
        worker = Worker(handler, store)
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run())
            await scheduler.submit("acme", "x")
            worker.stop()
        assert [type(grant) for grant in asked] == [Cover]
        assert await level(scheduler) == pytest.approx(1, abs=0.01)


async def test_the_middleware_serves_waits_and_refuses_over_a_store(dsn: str) -> None:
    """Requests with one permit: the first is served with the levels of the store, a strict one is refused."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert isinstance(await scheduler.on_before_message(SimpleNamespace(tenant="acme")), Cover)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def get() -> tuple[int, dict[bytes, bytes]]:
        sent: list[Any] = []
        request = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            return request.pop() if request else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await middleware({"type": "http", "headers": [], "method": "GET", "path": "/"}, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    one = Quota(Rate(1, per=3600, burst=1))
    store = PostgresStore(dsn)
    async with Scheduler(store=store, quotas=one, policy=Policy.strict()) as scheduler:
        middleware = WaitlineMiddleware(app, scheduler=scheduler, tenant=lambda _: "acme")
        status, headers = await get()
        assert status == 200
        assert any(b";r=0" in value for value in headers.values())
        status, headers = await get()
        assert status == 429
        assert headers[b"retry-after"] == b"60"
        await until(scheduler, waiting=0, running=0)


async def test_what_an_agent_s_call_uses_and_tells_is_the_request_s_over_a_store(dsn: str) -> None:
    """Under the middleware, with the hook: one call is paid as it was used, the other one stops the gate."""
    hourly = Rate(1, per=3600, burst=1000)
    quota, gate = Quota(hourly, input_tokens=hourly, output_tokens=hourly), Quota(hourly)
    refusal = (429, {"retry-after": "300"})
    store = PostgresStore(dsn)
    async with (
        in_memory(["Hello."], refusal) as (claude, agent),
        Scheduler(store=store, quotas=quota, gates={"m": gate}, policy=Policy.strict()) as scheduler,
    ):
        agent.on_before_message(scheduler.on_before_message)
        app = around(Route(agent), scheduler, gate="m", cost=lambda _: Cost(1, 300, 300))
        assert await get(app) == 200
        await until(scheduler, running=0)
        found = (await scheduler.statistics("acme")).levels
        assert found == pytest.approx({"requests": 999, "input_tokens": 990, "output_tokens": 995}, abs=0.1)
        assert await get(app) == 529
        await until(scheduler, running=0)
        while not (await scheduler.statistics()).gates["m"].paused:
            pass
        assert await get(app) == 429
        assert len(claude.arrivals) == 2


@pytest.mark.parametrize("error", [None, ErrRateLimited("acme", "strict", 1.0)])
async def test_a_response_that_is_there_does_not_wait_for_its_limits(
    dsn: str, error: Exception | None
) -> None:
    """A database that is slow costs it the headers that say what is left, and no more."""
    side = await asyncpg.connect(dsn)
    async with web(dsn, HOUR) as scheduler:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await side.execute("begin; lock table waitline.tenant in access exclusive mode")
            if error is not None:
                raise error
            await Route.answer(send)

        async with asyncio.timeout(5):
            assert await get(around(app, scheduler)) == (200 if error is None else 429)
        await side.execute("rollback")
        await until(scheduler, running=0)
        assert await level(scheduler) == pytest.approx(1, abs=0.01)
    await side.close()


async def test_a_caller_is_granted_among_many_tenants_that_wait_for_a_worker(dsn: str) -> None:
    """More than go into one claim, all of them due for longer."""
    async with web(dsn, Quota(Rate(20, burst=1))) as scheduler:

        async def call(tenant: str) -> None:
            async with scheduler.admit(tenant):
                pass

        blocked = [f"b{number}" for number in range(105)]
        await asyncio.gather(*(scheduler.enqueue(tenant, "nobody takes it") for tenant in blocked))
        waiting = [asyncio.create_task(call(tenant)) for tenant in blocked]
        await call("free")
        await asyncio.wait_for(call("free"), 15)
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_who_is_due_in_another_one_s_hands_waits_without_asking_all_the_time(dsn: str) -> None:
    looks = 0

    class Counted(Returning):
        async def _look(self) -> float:
            nonlocal looks
            looks += 1
            return await super()._look()

    async with web(dsn, Quota(Rate(20, burst=1))) as scheduler:
        scheduler.store.home.__class__ = Counted  # type: ignore[attr-defined]
        async with scheduler.admit("acme"):
            pass
        connection = await asyncpg.connect(dsn)
        async with connection.transaction():
            await connection.execute("select from waitline.tenant for update")
            grant = scheduler.admit("acme")
            waiting = asyncio.create_task(grant.__aenter__())
            await asyncio.sleep(0.6)
        await connection.close()
        await waiting
        await grant.__aexit__(None, None, None)
        assert looks < 60
