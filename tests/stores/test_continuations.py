"""Later messages of a run over PostgreSQL: through the hook, by the key of the run, in its slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler import ErrRateLimited, Grant, Job, Policy, Quota, Rate, Retry, Scheduler, Usage
from scheduler.http import WaitlineMiddleware
from scheduler.runtime.grant import Cover
from scheduler.stores.postgres import PostgresStore
from scheduler.worker import Worker
from tests.agent.claudes import connected, tool
from tests.stores.callers import rows, until

MESSAGE = SimpleNamespace(tenant="acme")
ONE_SLOT = Quota(Rate(20, burst=1), concurrency=1)
SCARCE = Quota(Rate(1, per=3600, burst=2))

Work = Callable[[Scheduler, Job], Awaitable[Any]]


@asynccontextmanager
async def runs(
    dsn: str, work: Work, quota: Quota, policy: Policy | None = None, **settings: Any
) -> AsyncIterator[Scheduler]:
    """A scheduler and a worker over one store; `work` is the handler, given the scheduler that it asks."""
    store = PostgresStore(dsn)

    async def handler(job: Job) -> Any:
        return await work(scheduler, job)

    async with Scheduler(store=store, quotas=quota, policy=policy or Policy()) as scheduler:
        worker = Worker(handler, store, **settings)
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run())
            try:
                yield scheduler
            finally:
                worker.stop()
                worker.stop()


async def ask(scheduler: Scheduler) -> Grant:
    grant = await scheduler.on_before_message(MESSAGE)
    assert grant is not None
    return grant


async def messages(scheduler: Scheduler, count: int) -> list[int]:
    """So many messages of one run, one after the other; the slots of those that were not free."""
    slots = []
    for _ in range(count):
        grant = await ask(scheduler)
        if not isinstance(grant, Cover):
            slots.append(grant.slot)
        grant.settle()
    return slots


async def nobody_left(scheduler: Scheduler) -> None:
    await until(scheduler, waiting=0, running=0)


@pytest.mark.parametrize("policy", [Policy(), Policy.strict()])
async def test_the_first_message_is_free_and_later_ones_pay_and_wait(dsn: str, policy: Policy) -> None:
    """With one slot, also under a strict policy: that of a job, which has acted, is not refused."""
    found: list[int] = []

    async def work(scheduler: Scheduler, job: Job) -> None:
        assert isinstance(await ask(scheduler), Cover)
        found.extend([job.slot, *await messages(scheduler, 3)])

    async with runs(dsn, work, ONE_SLOT, policy) as scheduler:
        await scheduler.submit("acme", "x")
        for first, second in pairwise(found):
            assert second - first >= 50_000_000 - 1
        assert len(found) == 4
        await nobody_left(scheduler)
        assert await rows(dsn, "select count(*) from waitline.job where holder is not null") == [(0,)]


async def test_they_go_before_jobs_that_came_later_however_many_slots_there_are(dsn: str) -> None:
    """All three jobs are in line when the first begins to run: its messages go before the other two."""
    order: list[str] = []
    ready = asyncio.Event()

    async def work(scheduler: Scheduler, job: Job) -> None:
        order.append(str(job.prompt))
        if job.prompt == "a":
            await ready.wait()
            for number in range(4):
                grant = await ask(scheduler)
                if not isinstance(grant, Cover):
                    order.append(f"a{number}")
                grant.settle()

    async with runs(dsn, work, Quota(Rate(4, burst=1))) as scheduler:
        calls = [asyncio.create_task(scheduler.submit("acme", "a"))]
        await until(scheduler, running=1)
        for number, prompt in enumerate("bc", 1):
            calls.append(asyncio.create_task(scheduler.submit("acme", prompt)))
            await until(scheduler, waiting=number)
        ready.set()
        await asyncio.gather(*calls)
    assert order == ["a", "a1", "a2", "a3", "b", "c"]


async def test_a_full_house_of_tool_loops_makes_progress(dsn: str) -> None:
    async def work(scheduler: Scheduler, job: Job) -> None:
        await messages(scheduler, 4)

    async with runs(dsn, work, Quota(Rate(100, burst=1), concurrency=2), concurrency=2) as scheduler:
        await asyncio.gather(*(scheduler.submit("acme", "x") for _ in range(6)))
        await nobody_left(scheduler)


async def test_a_job_that_no_worker_has_room_for_does_not_block_those_that_run(dsn: str) -> None:
    """A retry comes back with an earlier key than the run that fills the only worker."""

    async def work(scheduler: Scheduler, job: Job) -> int:
        if job.prompt == "first" and job.attempt == 1:
            raise Retry(after=0.01)
        if job.prompt == "second":
            back = "select 1 from waitline.job where state = 0 and returns <= waitline.now_ns()"
            while not await rows(dsn, back):
                pass
            return len(await messages(scheduler, 5))
        return 0

    async with runs(dsn, work, Quota(Rate(1000, burst=100)), concurrency=1) as scheduler:
        calls = [scheduler.submit("acme", prompt) for prompt in ("first", "second")]
        assert await asyncio.gather(*calls) == [0, 4]
        await nobody_left(scheduler)


async def test_a_process_does_not_claim_again_and_again_for_what_is_not_its_to_take(dsn: str) -> None:
    """A job is due and no worker has room for it, and the message behind it has no permits for an hour."""
    zeros: list[float] = []

    async def work(scheduler: Scheduler, job: Job) -> None:
        if job.prompt == "first" and job.attempt == job.tries:
            raise Retry(after=0.01, refused=True)
        if job.prompt == "second":
            assert isinstance(await ask(scheduler), Cover)
            message = asyncio.create_task(ask(scheduler))
            await until(scheduler, waiting=2)
            home = scheduler.store.home  # type: ignore[attr-defined]
            zeros.extend([wait for _ in range(100) if (wait := await home._look()) == 0.0])
            message.cancel()
            await asyncio.wait([message])

    async with runs(dsn, work, SCARCE, Policy(max_wait=None), concurrency=1) as scheduler:
        await asyncio.gather(*(scheduler.submit("acme", prompt) for prompt in ("first", "second")))
        await nobody_left(scheduler)
    assert len(zeros) <= 4


@pytest.mark.parametrize("policy", [Policy(max_wait=60), Policy.strict()])
async def test_the_default_policy_bounds_the_wait(dsn: str, policy: Policy) -> None:
    """Ten minutes, where it is strict; nothing of a refused message stays."""
    refused: list[ErrRateLimited] = []

    async def work(scheduler: Scheduler, job: Job) -> None:
        for _ in range(2):
            if (grant := await ask(scheduler)) is not None:
                grant.settle()
        with pytest.raises(ErrRateLimited) as error:
            await ask(scheduler)
        refused.append(error.value)

    async with runs(dsn, work, SCARCE, policy) as scheduler:
        await scheduler.submit("acme", "x")
        assert refused[0].reason == "max_wait"
        assert 3500 < refused[0].retry_after <= 3600
        await nobody_left(scheduler)


async def test_a_run_that_is_cancelled_while_its_message_waits_gives_everything_back(dsn: str) -> None:
    patient = Policy(max_wait=None)

    async def work(scheduler: Scheduler, job: Job) -> None:
        await messages(scheduler, 3)

    async with runs(dsn, work, SCARCE, patient) as scheduler:
        ticket = await scheduler.enqueue("acme", "x")
        await until(scheduler, running=1, waiting=1)
        assert ticket.cancel()
        await nobody_left(scheduler)
        (found,) = await rows(dsn, "select zeros, work, running from waitline.tenant")
        assert found[1:] == ([0], 0)
        assert (await scheduler.statistics("acme")).levels["requests"] == pytest.approx(0, abs=0.01)


async def test_messages_at_the_same_time_are_settled_given_back_or_cancelled(dsn: str) -> None:
    """Usage of a message replaces its permit, and the slot stays with its run until that ends."""

    async def work(scheduler: Scheduler, job: Job) -> None:
        assert isinstance(await ask(scheduler), Cover)
        tasks = [asyncio.create_task(ask(scheduler)) for _ in range(3)]
        grant = await tasks[0]
        await until(scheduler, waiting=2, running=1)
        tasks[2].cancel()
        await asyncio.wait(tasks[2:])
        await until(scheduler, waiting=1, running=1)
        assert grant is not None
        grant.settle(Usage(0, 0, 0))  # whose permit the second one finds there at once
        second = await tasks[1]
        assert second is not None
        scheduler.withdraw(second)
        await until(scheduler, waiting=0, running=1)
        assert (await scheduler.statistics("acme")).levels["requests"] == pytest.approx(1, abs=0.01)

    async with runs(dsn, work, Quota(SCARCE.requests, concurrency=1), Policy(max_wait=None)) as scheduler:
        await scheduler.submit("acme", "x")
        await nobody_left(scheduler)


async def test_what_outlives_its_run_takes_turns_of_its_own(dsn: str) -> None:
    """Also where only the database knows that the run is over, or somebody else's."""

    async def work(scheduler: Scheduler, job: Job) -> None:
        assert isinstance(await ask(scheduler), Cover)
        await rows(dsn, f"update waitline.job set tries = 7 where id = {job.id} returning id")
        grant = await ask(scheduler)
        assert grant is not None
        assert (await scheduler.statistics("acme")).running == 2
        grant.settle()
        await until(scheduler, running=1)
        await rows(dsn, f"update waitline.job set tries = 1 where id = {job.id} returning id")

    async with runs(dsn, work, Quota(Rate(1000, burst=100))) as scheduler:
        await scheduler.submit("acme", "x")
        await nobody_left(scheduler)


async def test_a_tenant_that_is_forgotten_leaves_no_message_behind(dsn: str) -> None:
    async def work(scheduler: Scheduler, job: Job) -> None:
        await messages(scheduler, 3)

    async with runs(dsn, work, SCARCE, Policy(max_wait=None)) as scheduler:
        call = asyncio.create_task(scheduler.submit("acme", "x"))
        await until(scheduler, running=1, waiting=1)
        await scheduler.forget("acme")
        await asyncio.wait([call])
        assert call.exception() is not None
        await nobody_left(scheduler)
        assert await rows(dsn, "select count(*) from waitline.job where state < 2") == [(0,)]


async def test_a_request_under_the_middleware_continues_as_a_job_does(dsn: str) -> None:
    """Its later messages use its slot: with a single one they would wait for themselves."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert isinstance(await ask(scheduler), Cover)
        assert len(await messages(scheduler, 3)) == 3
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def receive() -> Any:
        return request.pop() if request else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    request = [{"type": "http.request", "body": b"", "more_body": False}]
    async with Scheduler(store=PostgresStore(dsn), quotas=ONE_SLOT, policy=Policy.strict()) as scheduler:
        middleware = WaitlineMiddleware(app, scheduler=scheduler, tenant=lambda _: "acme")
        await middleware({"type": "http", "headers": [], "method": "GET", "path": "/"}, receive, send)
        assert sent[0]["status"] == 200
        await nobody_left(scheduler)


async def test_an_agent_with_tools_in_a_worker_pays_each_message_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    hour = Quota(Rate(1, per=3600, burst=10), concurrency=1)
    store = PostgresStore(dsn)
    async with connected(tools=[tool()]) as (claude, agent), Scheduler(store=store, quotas=hour) as scheduler:
        agent.on_before_message(scheduler.on_before_message)
        worker = Worker(agent.handle, store)
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run())
            reply = await scheduler.submit("acme", "look")
            again = await scheduler.submit("acme", "Say hi")
            worker.stop()
        assert (reply.turns, again.turns) == (2, 1)
        assert len(claude.requests) == 3
        assert (await scheduler.statistics("acme")).levels["requests"] == pytest.approx(7, abs=0.01)
        await nobody_left(scheduler)
