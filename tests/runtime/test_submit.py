"""`submit`: waiting one's turn, strict mode, and what the handler makes of it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from scheduler import Cost, ErrRateLimited, Job, Policy, Quota, QuotaExceeded, Rate, Usage
from tests.runtime.harness import Notes, assert_idle, level, make, now, outcomes, spawn, virtual


@virtual
async def test_the_known_example_starts_at_its_exact_times() -> None:
    """Rate 2, burst 5, eight submits at one instant: five at once, then one every half second."""
    notes = Notes()
    async with make(notes) as scheduler:
        answers = await asyncio.gather(*(scheduler.submit("acme", f"hi {n}") for n in range(8)))
    assert notes.order == [f"hi {n}" for n in range(8)]
    assert notes.times == [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.5]
    assert answers == [f"answer to hi {n}" for n in range(8)]
    assert_idle(scheduler)


@pytest.mark.parametrize("where", ["scheduler", "call", "mapping", "callable"])
def test_strict_refuses_with_distinct_exact_times(where: str) -> None:
    """Five are granted, the next three are told 0.5, 1.0 and 1.5 s, wherever the policy is given."""
    strict = Policy.strict()
    policies = {"scheduler": strict, "mapping": {"acme": strict}, "callable": lambda _: strict}

    @virtual
    async def scenario() -> None:
        notes = Notes()
        async with make(notes, policy=policies.get(where, Policy())) as scheduler:
            own = strict if where == "call" else None
            results = await outcomes(
                *(spawn(scheduler.submit("acme", f"hi {n}", policy=own)) for n in range(8))
            )
            statistics = await scheduler.statistics()
        refused = results[5:]
        assert all(isinstance(error, ErrRateLimited) for error in refused)
        assert [(e.tenant, e.reason, e.retry_after) for e in refused] == [
            ("acme", "strict", 0.5),
            ("acme", "strict", 1.0),
            ("acme", "strict", 1.5),
        ]
        assert str(refused[0]) == "tenant 'acme' is rate limited: retry after 0.5s"
        assert notes.times == [0.0] * 5
        assert dict(statistics.refused) == {"strict": 3}
        assert_idle(scheduler)

    scenario()


@virtual
async def test_who_comes_back_when_told_is_served() -> None:
    """A refused caller that returns after `retry_after` finds its permit."""
    notes = Notes()
    async with make(notes, policy=Policy.strict()) as scheduler:

        async def persistent(n: int) -> Any:
            try:
                return await scheduler.submit("acme", f"{n}")
            except ErrRateLimited as refusal:
                await asyncio.sleep(refusal.retry_after)
                return await scheduler.submit("acme", f"{n}")

        await asyncio.gather(*map(persistent, range(8)))
    assert notes.times == [0.0] * 5 + [0.5, 1.0, 1.5]


@virtual
async def test_the_quick_case_costs_no_suspension() -> None:
    """With a permit at hand and a handler that does not suspend, `submit` ends in its first step."""
    async with make(Notes()) as scheduler:
        call = scheduler.submit("acme", "hi")
        with pytest.raises(StopIteration) as done:
            call.send(None)
        assert done.value.value == "answer to hi"
        assert_idle(scheduler)
        with pytest.raises(StopIteration):
            scheduler.admit("acme").__aenter__().send(None)
        with pytest.raises(StopIteration):
            scheduler.on_before_message(Named("acme")).send(None)
        assert scheduler.engine.root.running == 2


class Named:
    """What a hook sees of a message."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant


@virtual
async def test_tenants_do_not_wait_for_each_other() -> None:
    """Each has its own bucket and line."""
    notes = Notes()
    async with make(notes) as scheduler:
        await asyncio.gather(*(scheduler.submit(t, f"{t}{n}") for n in range(7) for t in ("acme", "bolt")))
    for tenant in ("acme", "bolt"):
        assert [t for p, t in notes.starts if p.startswith(tenant)] == [0.0] * 5 + [0.5, 1.0]


@virtual
async def test_the_full_line_and_the_long_wait_are_refused() -> None:
    """`max_queue`, `max_wait` and `max_waiting` each name themselves, and equal is accepted."""
    async with make(Notes(), Quota(Rate(1)), max_waiting=3) as scheduler:
        policy = Policy(max_queue=2)
        running = [spawn(scheduler.submit("acme", "x", policy=policy)) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(ErrRateLimited) as full:
            await scheduler.submit("acme", "x", policy=policy)
        assert full.value.reason == "queue_full"
        running.append(spawn(scheduler.submit("acme", "x", policy=Policy(max_wait=3.0))))
        with pytest.raises(ErrRateLimited) as long:
            await scheduler.submit("acme", "x", policy=Policy(max_wait=2.999))
        assert long.value.reason == "max_wait"
        await asyncio.sleep(0)
        with pytest.raises(ErrRateLimited) as many:
            await scheduler.submit("acme", "x")
        assert many.value.reason == "max_waiting"
        assert all(e.value.retry_after > 0 for e in (full, long, many))
        assert sum(isinstance(r, ErrRateLimited) for r in await outcomes(*running)) == 1
    assert_idle(scheduler)


@virtual
async def test_what_can_never_fit_is_another_error_than_not_yet() -> None:
    """A cost above the burst is `QuotaExceeded`, naming limit, cost and burst; nothing is charged."""
    async with make(Notes(), Quota(Rate(2, burst=5), input_tokens=Rate(10, burst=100))) as scheduler:
        with pytest.raises(QuotaExceeded) as never:
            await scheduler.submit("acme", "x", cost=Cost(1, input_tokens=101))
        assert (never.value.limit, never.value.cost, never.value.burst) == ("input_tokens", 101, 100)
        assert (level(scheduler), level(scheduler, name="input_tokens")) == (5.0, 100.0)
        assert_idle(scheduler)


@virtual
async def test_a_handler_s_own_exception_reaches_the_caller_unchanged() -> None:
    """The very object, the permit paid, the slot free."""
    mine = KeyError("mine")

    async def handler(job: Job) -> None:
        if job.prompt == "late":
            await asyncio.sleep(1)
        raise mine

    async with make(handler) as scheduler:
        for prompt in ("now", "late"):
            with pytest.raises(KeyError) as caught:
                await scheduler.submit("acme", prompt)
            assert caught.value is mine
            ticket = await scheduler.enqueue("acme", prompt)
            with pytest.raises(KeyError) as caught:
                await ticket.result()
            assert caught.value is mine
            assert ticket.state == "failed"
        assert (await scheduler.statistics()).failed == 4
    assert_idle(scheduler)


@pytest.mark.parametrize("kind", ["future", "task", "awaitable", "partial", "sync", "none", "raises"])
def test_any_awaitable_will_do(kind: str) -> None:
    """A handler may return any awaitable; what is none is a TypeError, and costs no slot."""

    class Later:
        def __await__(self) -> Any:
            yield from asyncio.sleep(1).__await__()
            return "done"

    async def work(job: Job) -> str:
        await asyncio.sleep(1)
        return "done"

    def handler(job: Job) -> Any:
        loop = asyncio.get_running_loop()
        if kind == "future":
            future = loop.create_future()
            loop.call_later(1, future.set_result, "done")
            return future
        if kind == "raises":
            raise LookupError("at once")
        if kind == "awaitable":
            return Later()
        return {"task": lambda job: spawn(work(job)), "sync": work}.get(kind, lambda _: None)(job)

    @virtual
    async def scenario() -> None:
        async with make(partial(work) if kind == "partial" else handler) as scheduler:
            call = scheduler.submit("acme", "x")
            if kind in {"none", "raises"}:
                with pytest.raises(TypeError if kind == "none" else LookupError):
                    await call
            else:
                assert await call == "done"
                assert now() == 1.0
            assert_idle(scheduler)
            assert level(scheduler) == (4.0 if kind in {"none", "raises"} else 5.0)

    scenario()


@virtual
async def test_usage_replaces_the_estimate_when_the_handler_ends() -> None:
    """`job.settle` gives back what was not used, and charges what was used above it."""
    used = iter([40, 160])

    async def handler(job: Job) -> None:
        job.settle(Usage(1, next(used), 0))

    quota = Quota(input_tokens=Rate(10, burst=1000))
    async with make(handler, quota) as scheduler:
        await scheduler.submit("acme", "x", cost=Cost(1, 100))
        assert level(scheduler, name="input_tokens") == 960.0
        await scheduler.submit("acme", "x", cost=Cost(1, 100))
        assert level(scheduler, name="input_tokens") == 800.0
