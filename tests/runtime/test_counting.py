"""What a call asks for where counting takes a while, tenants are new, and ladders are not for everybody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import (
    Cost,
    DeadlineExceeded,
    Estimates,
    Job,
    Policy,
    Quota,
    Rate,
    Rung,
    Scheduler,
    SchedulerClosed,
    Usage,
)
from scheduler.stores.postgres import PostgresStore
from scheduler.testing.virtual import VirtualClock
from tests.runtime.harness import now, virtual

WIDE = Quota(output_tokens=Rate.per_minute(60_000))


async def slowly(prompt: Any) -> int:
    """A count that takes ten seconds."""
    await asyncio.sleep(10)
    return 5


async def cost_of(job: Job) -> Cost:
    return job.cost


@virtual
async def test_a_timeout_bounds_the_count_too() -> None:
    options: dict[str, Any] = {"gates": WIDE, "estimates": Estimates(slowly), "clock": VirtualClock()}
    async with Scheduler(cost_of, **options) as scheduler:
        for call in (
            scheduler.submit("acme", "hello", timeout=2),
            scheduler.enqueue("acme", "hi", timeout=2),
        ):
            began = now()
            with pytest.raises(DeadlineExceeded, match="timeout of 2s passed"):
                await call
            assert now() == began + 2
        assert (await scheduler.submit("acme", "hello", timeout=12)).output_tokens == 256


@virtual
async def test_who_is_counted_is_waited_for_and_who_comes_after_the_end_is_told() -> None:
    scheduler = Scheduler(cost_of, gates=WIDE, estimates=Estimates(slowly), clock=VirtualClock())
    async with scheduler:
        counted = asyncio.create_task(scheduler.submit("acme", "hello"))
        await asyncio.sleep(1)
        closing = asyncio.create_task(scheduler.aclose())
        await asyncio.sleep(1)
        with pytest.raises(SchedulerClosed):
            await scheduler.submit("acme", "hello")
        assert not closing.done()
        with pytest.raises(SchedulerClosed):  # it had not joined a line
            await counted
        await closing


@virtual
async def test_a_hasty_end_does_not_wait_for_a_count() -> None:
    options: dict[str, Any] = {"gates": WIDE, "estimates": Estimates(slowly), "clock": VirtualClock()}
    async with Scheduler(cost_of, **options) as scheduler:
        calls = [asyncio.ensure_future(scheduler.submit("acme", "hello"))]
        calls += [asyncio.ensure_future(scheduler.submit("acme", "hello", timeout=5))]
        calls += [asyncio.ensure_future(scheduler.enqueue("acme", "hello"))]
        await asyncio.sleep(1)
        await scheduler.aclose(drain=False)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert now() == 1.0
        assert all(isinstance(answer, SchedulerClosed) for answer in answers)
        assert (await scheduler.statistics()).granted == 0


@virtual
async def test_a_count_that_was_never_begun_leaves_nothing_behind() -> None:
    """A task that is cancelled before its first step: no coroutine is forgotten."""
    options: dict[str, Any] = {"gates": WIDE, "estimates": Estimates(slowly), "clock": VirtualClock()}
    async with Scheduler(cost_of, **options) as scheduler:
        task = asyncio.create_task(scheduler.submit("acme", "hello"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await scheduler.statistics()).waiting == 0


@virtual
async def test_a_later_message_whose_run_ended_while_it_was_counted_takes_a_slot_of_its_own() -> None:
    hooked: list[Any] = []

    class Message:
        tenant, prompt = "acme", "tool results"

    async def handler(job: Job) -> None:
        job.free_message = False
        hooked.append(asyncio.create_task(job.scheduler.on_before_message(Message())))
        await asyncio.sleep(1)

    options: dict[str, Any] = {"gates": WIDE, "estimates": Estimates(slowly), "clock": VirtualClock()}
    async with Scheduler(handler, max_running=1, **options) as scheduler:
        await scheduler.submit("acme", "hello", cost=Cost(1, 0, 1))
        grant = await hooked[0]
        assert (await scheduler.statistics()).running == 1
        grant.settle()
        assert (await scheduler.statistics()).running == 0


@virtual
async def test_an_estimate_never_refuses_a_tenant_for_being_new() -> None:
    """Seen first, or forgotten in the meantime."""
    quota = Quota(output_tokens=Rate(10, burst=100))
    async with Scheduler(cost_of, quotas=quota, clock=VirtualClock()) as scheduler:
        for _ in range(2):
            assert await scheduler.submit("acme", "hello") == Cost(1, 9, 100)
            await asyncio.sleep(100)
            assert not scheduler.engine.tenants


@virtual
async def test_a_grant_takes_no_rungs() -> None:
    """Its call is its caller's own: it cannot be made shorter, or left for later."""
    ladder = (Rung(0.1, gate="small"), Rung(0.5, defer="batch"))
    gates = {"large": Quota(Rate(1), concurrency=1), "small": Quota()}
    running = 0

    async def block(scheduler: Scheduler) -> None:
        nonlocal running
        async with scheduler.admit("acme", gate="large") as grant:
            running += 1
            assert (running, grant.gate, grant.rung) == (1, "large", 0)
            await asyncio.sleep(0.2)
            running -= 1

    policy = Policy(max_wait=None, ladder=ladder)
    async with Scheduler(
        cost_of, gates=gates, policy=policy, deferred=cost_of, clock=VirtualClock()
    ) as scheduler:
        await asyncio.gather(*(block(scheduler) for _ in range(20)))
        assert now() == pytest.approx(19.2)


@virtual
async def test_no_more_is_deferred_than_may_be() -> None:
    async def later(job: Job) -> str:
        await asyncio.sleep(100)
        job.settle(Usage(1, 1, 1))
        return "later"

    options: dict[str, Any] = {"gates": Quota(Rate(1)), "deferred": later, "clock": VirtualClock()}
    policy = Policy(max_wait=None, ladder=[Rung(2, defer="batch")])
    async with Scheduler(cost_of, policy=policy, max_deferred=3, **options) as scheduler:
        results = await asyncio.gather(*(scheduler.submit("acme", "hello") for _ in range(10)))
        assert results.count("later") == 3
        assert now() == 100


async def test_a_store_says_what_it_cannot_do_yet() -> None:
    """Before anything is asked of a database."""
    store = PostgresStore("postgresql://nobody@127.0.0.1:1/none")
    scheduler = Scheduler(store=store)
    scheduler.closed = False
    with pytest.raises(ValueError, match="policy: a ladder over a store needs gates"):
        await scheduler.enqueue("acme", "hello", policy=Policy(ladder=[Rung(1, max_tokens=5)]))


@virtual
async def test_a_count_that_is_no_number_is_named() -> None:
    options: dict[str, Any] = {"gates": WIDE, "clock": VirtualClock()}
    async with Scheduler(cost_of, estimates=Estimates(lambda prompt: -1), **options) as scheduler:
        with pytest.raises(ValueError, match="count: what it returned: must be at least 0, got -1"):
            await scheduler.submit("acme", "hello")
