"""`admit` and the hook: the primitive under all, and the integration with an agent."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import pytest

from scheduler import Cost, ErrRateLimited, Grant, Job, Policy, Quota, Rate, Rung, Scheduler, Usage
from scheduler.runtime.grant import Cover, Turn, current_turn
from scheduler.testing.virtual import VirtualClock
from tests.runtime.harness import KNOWN, Notes, assert_idle, level, make, now, outcomes, spawn, virtual


@dataclass
class Message:
    """What the hook sees of a message."""

    tenant: str
    deferred: bool = False


async def ask(scheduler: Scheduler, tenant: str = "acme") -> Grant | None:
    """One message through the hook."""
    return await scheduler.on_before_message(Message(tenant))


def over(grant: Turn | None) -> bool:
    """Whether a context's grant covers nothing any more."""
    return grant is None or grant.state.value == "ended"


@virtual
async def test_admit_waits_charges_and_settles() -> None:
    """Its grant tells how long it waited; usage may be told; an exception of the block passes."""
    async with make(None, Quota(Rate(1), input_tokens=Rate(1, per=1000, burst=100))) as scheduler:
        async with scheduler.admit("acme", cost=Cost(1, 10)) as grant:
            assert (await scheduler.statistics()).running == 1
            grant.settle(Usage(1, 4, 0))
            grant.settle(Usage(1, 90, 0))
            assert (await scheduler.statistics()).running == 0
        assert level(scheduler, name="input_tokens") == 96.0

        async def breaks() -> None:
            async with scheduler.admit("acme") as grant:
                assert (now(), grant.waited, grant.promised_wait) == (1.0, 1.0, 1.0)
                raise LookupError

        with pytest.raises(LookupError):
            await breaks()
        assert_idle(scheduler)


@virtual
async def test_a_message_that_goes_in_a_batch_takes_no_permit() -> None:
    """Nor does it wait, or get refused: no gate counts it."""
    async with make(None, Quota(Rate(1)), policy=Policy.strict()) as scheduler:
        for _ in range(3):
            assert await scheduler.on_before_message(Message("acme", deferred=True)) is None
        assert now() == 0.0
        assert_idle(scheduler)


@virtual
async def test_a_block_or_a_message_is_never_deferred() -> None:
    """There is no handler that would take it elsewhere: it waits, whatever its ladder says."""

    async def unused(job: Job) -> None:
        raise AssertionError

    policy = Policy(max_wait=None, ladder=[Rung(0.5, defer="batch")])
    async with Scheduler(
        unused, deferred=unused, quotas=Quota(Rate(1)), policy=policy, clock=VirtualClock()
    ) as scheduler:
        for expected in (0.0, 1.0, 2.0):
            async with scheduler.admit("acme") as grant:
                assert (now(), grant.deferred) == (expected, False)
        message = await ask(scheduler)
        assert message is not None
        assert now() == 3.0
        message.settle()
        assert_idle(scheduler)


@virtual
async def test_the_hook_waits_or_refuses_by_policy() -> None:
    """Without a job the hook is a line like any other, strict or not."""
    policies = {"acme": Policy(), "bolt": Policy.strict()}
    async with make(None, Quota(Rate(1)), policy=policies) as scheduler:
        for expected in (0.0, 1.0):
            grant = await ask(scheduler)
            assert grant is not None
            grant.settle()
            assert now() == expected
        (await ask(scheduler, "bolt")).settle()  # type: ignore[union-attr]
        with pytest.raises(ErrRateLimited) as refused:
            await ask(scheduler, "bolt")
        assert (refused.value.reason, refused.value.retry_after) == ("strict", 1.0)
    assert_idle(scheduler)


@virtual
async def test_the_first_message_of_a_job_is_free_and_later_ones_pay() -> None:
    """They take permits by the run's key, reuse its slot, and wait even under strict."""
    times: list[float] = []

    async def handler(job: Job) -> None:
        assert isinstance(await ask(scheduler), Cover)
        times.append(now())
        for _ in range(2):
            grant = await ask(scheduler)
            assert grant is not None
            times.append(now())
            grant.settle(Usage())

    async with make(handler, Quota(Rate(1), concurrency=1), policy=Policy.strict()) as scheduler:
        running = spawn(scheduler.submit("acme", "x"))
        await asyncio.sleep(0.5)
        with pytest.raises(ErrRateLimited):
            await scheduler.submit("acme", "y")
        await running
        assert times == [0.0, 1.0, 2.0]
        assert (await scheduler.statistics()).granted == 3
    assert_idle(scheduler)


@virtual
async def test_a_full_house_of_tool_loops_makes_progress() -> None:
    """All slots are held by runs that want another message: none waits for a slot."""

    async def handler(job: Job) -> None:
        for _ in range(4):
            grant = await ask(scheduler, job.tenant)
            if grant is not None:
                grant.settle()

    async with make(handler, Quota(Rate(10), concurrency=2), max_running=2) as scheduler:
        await asyncio.gather(*(scheduler.submit("acme", "x") for _ in range(5)))
    assert now() == 1.9
    assert_idle(scheduler)


@virtual
async def test_another_tenant_s_message_inside_a_job_pays_for_itself() -> None:
    """The free message is for the job's own tenant only."""
    grants: list[Any] = []

    async def handler(job: Job) -> None:
        grants.extend([await ask(scheduler, tenant) for tenant in ("bolt", "acme", "bolt")])

    async with make(handler) as scheduler:
        await scheduler.submit("acme", "x")
        assert [isinstance(grant, Cover) for grant in grants] == [False, True, False]
        assert level(scheduler, "bolt") == 3.0
        for grant in grants:
            grant.settle()
        assert_idle(scheduler)


@virtual
async def test_two_schedulers_one_inside_the_other() -> None:
    """A job of one covers nothing at another, whose gates may have other names; one around it does."""

    async def inner_work(job: Job) -> str:
        assert isinstance(await ask(inner), Cover)
        assert isinstance(await ask(outer), Cover)
        return "inner"

    async def outer_work(job: Job) -> Any:
        grant = await ask(inner)
        assert grant is not None
        grant.settle()
        result = await inner.submit("acme", "x")
        assert current_turn.get() is job
        grant = await ask(outer)
        assert type(grant) is Grant
        grant.settle()
        return result

    outer, inner = make(outer_work, gates={"haiku": Quota()}), make(inner_work, gates={"opus": Quota()})
    async with outer, inner:
        assert await outer.submit("acme", "x") == "inner"
        assert over(current_turn.get())
        assert (level(outer), level(inner)) == (3.0, 3.0)
    assert_idle(outer)
    assert_idle(inner)


@virtual
async def test_jobs_that_enqueue_one_another_do_not_keep_each_other() -> None:
    """Each begins under the one that enqueued it, which is forgotten when it is over."""
    jobs: list[weakref.ref[Job]] = []

    async def handler(job: Job) -> None:
        jobs.append(weakref.ref(job))
        if len(jobs) < 50:
            await scheduler.enqueue("acme", "x")
            await asyncio.sleep(2)  # the next one begins in the meantime
        else:
            await asyncio.sleep(10)
            gc.collect()
            alive.set_result(len([job for job in jobs if job() is not None]))

    alive: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with make(handler, Quota(Rate(1))) as scheduler:
        await scheduler.enqueue("acme", "x")
        assert await alive < 5


@virtual
async def test_a_handler_s_own_call_of_an_agent_is_charged_to_the_job() -> None:
    """What settles the covered message is added to the usage of the job, once, and the job goes on."""

    async def handler(job: Job) -> None:
        grant = await ask(scheduler)
        assert grant is not None
        grant.settle(Usage(1, 0, 0))
        grant.settle(Usage(1, 7, 0))
        assert job.usage == Usage(1, 0, 0)
        assert (await scheduler.statistics()).running == 1

    async with make(handler, Quota(Rate(1, per=1000, burst=9))) as scheduler:
        await scheduler.submit("acme", "x", cost=Cost(5))
        assert level(scheduler) == 8.0
    assert_idle(scheduler)


@virtual
async def test_a_task_that_outlives_its_job() -> None:
    """What a handler spawned and left behind takes turns of its own: nothing is free, no slot is borrowed."""
    left: list[asyncio.Task[Any]] = []

    async def afterwards() -> Grant | None:
        await asyncio.sleep(1)
        assert over(current_turn.get())
        return await ask(scheduler)

    async def handler(job: Job) -> None:
        left.append(spawn(afterwards()))

    async with make(handler, KNOWN) as scheduler:
        await scheduler.submit("acme", "x")
        grant = await left[0]
        assert isinstance(grant, Grant)
        assert (await scheduler.statistics()).running == 1
        grant.settle()
        assert_idle(scheduler)


@virtual
async def test_messages_at_the_same_time_in_one_job() -> None:
    """Of three at once, one is free; the others are settled, withdrawn by a cancellation, or closed."""

    async def handler(job: Job) -> None:
        tasks = [spawn(ask(scheduler)) for _ in range(3)]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        results = await outcomes(*tasks)
        assert isinstance(results[0], Cover)
        assert isinstance(results[1], asyncio.CancelledError)
        results[2].settle()

    async with make(handler, Quota(Rate(1), concurrency=1)) as scheduler:
        await scheduler.submit("acme", "x")
        assert now() == 1.0
        assert_idle(scheduler)


@virtual
async def test_a_message_that_waits_when_the_scheduler_closes() -> None:
    """Draining lets a run finish its messages; cancelling ends it."""

    async def handler(job: Job) -> str:
        for _ in range(3):
            if (grant := await ask(scheduler)) is not None:
                grant.settle()
        return "done"

    for drain in (True, False):
        started = now()
        async with make(handler, Quota(Rate(1))) as scheduler:
            task = spawn(scheduler.submit("acme", "x"))
            await asyncio.sleep(0.5)
            await scheduler.aclose(drain=drain)
            result = (await outcomes(task))[0]
            assert (result == "done", now() - started) == (drain, 2.0 if drain else 0.5)
        assert_idle(scheduler)


@virtual
async def test_the_context_is_left_as_it_was() -> None:
    """After a submit, in whatever way it ended, the caller's context has no grant that would still serve."""

    async def handler(job: Job) -> None:
        assert current_turn.get() is job
        await asyncio.sleep(1)
        raise LookupError

    async with make(handler, run_timeout=5) as scheduler:
        with pytest.raises(LookupError):
            await scheduler.submit("acme", "x")
        assert over(current_turn.get())
        call = scheduler.submit("acme", "x")
        task = spawn(call)
        await asyncio.sleep(0.5)
        task.cancel()
        await outcomes(task)
        assert over(current_turn.get())
        other = scheduler.submit("acme", "x")
        copy_context().run(other.send, None)
        other.close()  # from another context than it ran in
        assert_idle(scheduler)
    _ = Notes
