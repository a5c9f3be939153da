"""Law 8: who was seen once costs nothing afterwards."""

from __future__ import annotations

import asyncio
import gc
import weakref

from scheduler import (
    Grant,
    Job,
    Policy,
    Quota,
    Rate,
    Retry,
    Rung,
    Scheduler,
    SchedulerError,
)
from scheduler.testing.virtual import VirtualClock
from tests.runtime.harness import KNOWN, Notes, assert_idle, make, outcomes, spawn, turns, virtual


def objects() -> int:
    """Everything the collector knows, after it has collected."""
    gc.collect()
    return len(gc.get_objects())


@virtual
async def test_twenty_thousand_tenants_touched_once_are_forgotten() -> None:
    """In every way of coming: served, queued, refused, quoted."""

    async def touch(scheduler: Scheduler, tenants: range) -> None:
        for n in tenants:
            await scheduler.submit(f"t{n}", "x")
            if n % 100 == 0:
                await scheduler.enqueue(f"t{n}", "x")
                await scheduler.enqueue(f"t{n}", "x")
                await outcomes(spawn(scheduler.submit(f"t{n}", "x", policy=Policy.strict())))
            if n % 7 == 0:
                await scheduler.quote(f"q{n}")
        await asyncio.sleep(600)

    async with make(silent, Quota(Rate(1, burst=2), input_tokens=Rate(9))) as scheduler:
        await touch(scheduler, range(100))
        before = objects()
        await touch(scheduler, range(1000, 21_000))
        assert len(scheduler.engine.tenants) == 0
        assert len(scheduler.engine.events.items) == 0
        assert objects() - before < 100
        assert_idle(scheduler)


def grants() -> int:
    """How many grants there are."""
    gc.collect()
    return sum(type(thing) is Grant for thing in gc.get_objects())


class Text(str):
    """A prompt that can be watched."""

    __slots__ = ("__weakref__",)


async def silent(job: Job) -> str:
    """Takes no notes, which would be what is remembered."""
    return "done"


@virtual
async def test_a_tenant_in_debt_or_with_an_echo_is_remembered_until_that_has_passed() -> None:
    """Forgetting is for those whose absence changes no decision."""
    async with make(Notes(), KNOWN) as scheduler:
        tasks = [spawn(scheduler.submit("acme", "x", policy=Policy.strict())) for _ in range(25)]
        await outcomes(*tasks)
        await asyncio.sleep(10)
        assert "acme" in scheduler.engine.tenants  # the last refused was told 10 s, and its bucket must fill
        await asyncio.sleep(10)
        assert "acme" not in scheduler.engine.tenants


@virtual
async def test_a_job_is_let_go_when_it_is_over() -> None:
    """However it ended, once the caller has let go, no job, grant or prompt is kept alive."""
    kept: list[weakref.ref[Text]] = []

    async def handler(job: Job) -> str:
        assert isinstance(job.prompt, Text)
        kept.append(weakref.ref(job.prompt))
        if job.prompt == "fails":
            raise LookupError
        if job.prompt == "again" and job.attempt == 1:
            raise Retry(1)
        await asyncio.sleep(5 if job.prompt == "hangs" else 0)
        return "done"

    async with make(handler, KNOWN, run_timeout=3) as scheduler:
        for prompt in ("good", "fails", "again", "hangs"):
            await outcomes(spawn(scheduler.submit("acme", Text(prompt))))
            ticket = await scheduler.enqueue("acme", Text(prompt), session="s", timeout=100)
            await outcomes(spawn(ticket.result()))
            del ticket
        leaver = spawn(scheduler.submit("acme", Text("good")))
        await turns(1)
        leaver.cancel()
        await outcomes(leaver)
        del leaver
        await asyncio.sleep(200)
        gc.collect()
        assert [ref() for ref in kept] == [None] * 11
        assert_idle(scheduler)


@virtual
async def test_a_success_leaves_nothing_to_the_collector() -> None:
    """The common cases make no reference cycles: memory is given back at once."""
    async with make(silent, Quota()) as scheduler:
        tickets = [await scheduler.enqueue("acme", "x")]
        await tickets.pop().result()
        await scheduler.submit("acme", "x")
        await turns(3)
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                await scheduler.submit("acme", "x")
                await (await scheduler.enqueue("acme", "x")).result()
                async with scheduler.admit("acme"):
                    pass
            await turns(3)
            assert gc.collect() < 20
        finally:
            gc.enable()


@virtual
async def test_a_refusal_holds_no_caller() -> None:
    """A refused grant is not kept by the engine."""
    async with make(Notes(), Quota(Rate(1)), policy=Policy.strict()) as scheduler:
        await scheduler.submit("acme", "x")
        before, refused = grants(), False
        grant = scheduler.admit("acme")
        try:
            await grant.__aenter__()
        except SchedulerError:
            refused = True
        del grant
        assert refused
        assert grants() <= before


@virtual
async def test_no_scheduler_has_so_many_attributes_that_all_of_them_become_slow() -> None:
    # CPython finds the attributes of an object by their place while there are fewer than 30 of them.
    ladder = [Rung(after=1, max_tokens=10)]
    scheduler = Scheduler(
        silent,
        quotas=lambda _: Quota(Rate(10), input_tokens=Rate(1000), output_tokens=Rate(1000)),
        policy=Policy(ladder=ladder),
        gates={"": Quota(output_tokens=Rate(1000))},
        deferred=silent,
        listener=lambda _: None,
        clock=VirtualClock(),
    )
    async with scheduler:
        await scheduler.submit("acme", "Say hi", policy=Policy(ladder=[Rung(after=2, max_tokens=10)]))
        await scheduler.aclose(drain=False)
    assert len(vars(scheduler)) < 30
    assert len(vars(scheduler.engine)) < 30
