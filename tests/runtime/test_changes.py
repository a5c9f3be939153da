"""What changes a line while jobs wait: limits, priorities, sessions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import Cost, ErrRateLimited, Policy, Quota, QuotaExceeded, Rate
from tests.runtime.harness import Notes, assert_idle, level, make, now, outcomes, spawn, turns, virtual


@pytest.mark.parametrize(
    ("quota", "times"),
    [
        (Quota(Rate(10, burst=1)), [0.0, 0.55, 0.65, 0.75]),
        (Quota(Rate(1, per=2)), [0.0, 1.5, 3.5, 5.5]),
        (Quota(), [0.0, 0.5, 0.5, 0.5]),
        (Quota(Rate(1, burst=9)), [0.0, 1.0, 2.0, 3.0]),
    ],
    ids=["faster", "slower", "none", "more burst"],
)
def test_a_new_quota_plans_the_line_anew(quota: Quota, times: list[float]) -> None:
    """At 0.5 s, with half a permit saved: the level is kept, the rest goes by the new rate."""

    @virtual
    async def scenario() -> None:
        notes = Notes()
        async with make(notes, Quota(Rate(1))) as scheduler:
            tasks = [spawn(scheduler.submit("acme", n)) for n in "0123"]
            await asyncio.sleep(0.5)
            await scheduler.set_quota("acme", quota)
            await asyncio.gather(*tasks)
            await scheduler.submit("bolt", "0")
        assert notes.times[:4] == times
        assert_idle(scheduler)

    scenario()


@virtual
async def test_a_slower_quota_refuses_who_would_now_wait_too_long() -> None:
    """`max_wait` is judged again; the others of the line go on, later than promised by a named cause."""
    notes = Notes()
    async with make(notes, Quota(Rate(1))) as scheduler:
        await scheduler.submit("acme", "first")
        patient = await scheduler.enqueue("acme", "patient")
        hasty = spawn(scheduler.submit("acme", "hasty", policy=Policy(max_wait=3)))
        await asyncio.sleep(0)
        assert (patient.wait, patient.expected, patient.delayed_by) == (1.0, 1.0, frozenset())
        await scheduler.set_quota("acme", Quota(Rate(1, per=5)))
        assert (patient.wait, patient.expected, patient.delayed_by) == (
            1.0,
            5.0,
            frozenset({"limit_lowered"}),
        )
        error = (await outcomes(hasty))[0]
        assert isinstance(error, ErrRateLimited)
        assert (error.reason, error.retry_after) == ("max_wait", 10.0)
        await patient.result()
        assert now() == 5.0
    assert_idle(scheduler)


@pytest.mark.parametrize("way", ["submit", "enqueue", "admit"])
def test_who_can_never_fit_any_more_fails_and_those_behind_move_up(way: str) -> None:
    """`QuotaExceeded`, at that instant, in every way of waiting."""

    @virtual
    async def scenario() -> None:
        notes = Notes()
        async with make(notes, Quota(Rate(1, burst=10))) as scheduler:
            await scheduler.submit("acme", "first", cost=Cost(10))
            call: Any = None
            if way == "submit":
                call = scheduler.submit("acme", "large", cost=Cost(5))
            elif way == "enqueue":
                call = (await scheduler.enqueue("acme", "large", cost=Cost(5))).result()
            else:
                call = scheduler.admit("acme", cost=Cost(5)).__aenter__()
            large = spawn(call)
            small = spawn(scheduler.submit("acme", "small"))
            await asyncio.sleep(2)
            await scheduler.set_quota("acme", Quota(Rate(1, burst=4)))
            error = (await outcomes(large))[0]
            assert isinstance(error, QuotaExceeded)
            assert str(error) == "tenant 'acme': cost 5 can never fit requests of burst 4"
            await small
            assert now() == 2.0
            with pytest.raises(QuotaExceeded):
                await scheduler.submit("acme", "large", cost=Cost(5))
        assert notes.order == ["first", "small"]
        assert_idle(scheduler)

    scenario()


@virtual
async def test_a_quota_set_by_hand_outlives_idleness() -> None:
    """It is an override: the tenant is not forgotten, and not served by `quotas` again."""
    async with make(Notes(), Quota(Rate(1, burst=2))) as scheduler:
        await scheduler.set_quota("acme", Quota(Rate(1, burst=7)))
        await asyncio.sleep(10_000)
        assert level(scheduler) == 2.0 + 5.0
        assert (await scheduler.statistics()).tenants == 1


@virtual
async def test_concurrency_bounds_what_runs() -> None:
    """Per tenant, per gate and overall, whichever is least; slots are taken in order of arrival."""
    notes = Notes(takes=1)
    async with make(
        notes, Quota(concurrency=3), gates={"a": Quota(concurrency=2), "b": Quota()}, max_running=4
    ) as scheduler:
        tasks = [spawn(scheduler.submit("acme", f"a{n}", gate="a")) for n in range(4)]
        tasks += [spawn(scheduler.submit("bolt", f"b{n}", gate="b")) for n in range(4)]
        await asyncio.sleep(0.5)
        assert notes.order == ["a0", "a1", "b0", "b1"]
        assert (await scheduler.statistics("acme")).running == 2
        await asyncio.gather(*tasks)
    assert notes.times == [0.0] * 4 + [1.0] * 4
    assert_idle(scheduler)


@virtual
async def test_a_priority_is_a_head_start_in_seconds() -> None:
    """Ten seconds of head start pass those who came up to ten seconds before, and nobody earlier."""
    notes = Notes()
    async with make(notes, Quota(Rate(1, per=20))) as scheduler:
        tasks = [spawn(scheduler.submit("acme", "first"))]
        tasks.append(spawn(scheduler.submit("acme", "early")))
        await asyncio.sleep(12)
        tasks.append(spawn(scheduler.submit("acme", "late")))
        await asyncio.sleep(5)
        tasks.append(spawn(scheduler.submit("acme", "urgent", priority=10)))
        await asyncio.gather(*tasks)
    assert notes.order == ["first", "early", "urgent", "late"]


@virtual
async def test_a_priority_delays_a_promise_by_name() -> None:
    """Who is passed learns it."""
    async with make(Notes(), Quota(Rate(1))) as scheduler:
        await scheduler.submit("acme", "x")
        ticket = await scheduler.enqueue("acme", "x")
        await asyncio.sleep(0.5)
        urgent = await scheduler.enqueue("acme", "x", priority=5)
        assert (urgent.wait, urgent.position) == (0.5, 0)
        assert (ticket.wait, ticket.expected, ticket.position) == (1.0, 2.0, 1)
        assert ticket.delayed_by == {"priority"}
        await ticket.result()
        assert (now(), ticket.expected, ticket.delayed_by) == (2.0, 2.0, frozenset({"priority"}))


@virtual
async def test_jobs_of_a_session_run_one_after_the_other() -> None:
    """In order, while other sessions and tenants pass; a failing or cancelled one lets the next go."""
    notes = Notes(takes=1)
    async with make(notes, Quota()) as scheduler:
        tasks = [spawn(scheduler.submit("acme", f"s{n}", session="s")) for n in range(4)]
        tasks.append(spawn(scheduler.submit("acme", "t0", session="t")))
        tasks.append(spawn(scheduler.submit("bolt", "other", session="s")))
        await turns(2)
        assert notes.order == ["s0", "t0", "other"]
        tasks[1].cancel()
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        await outcomes(*tasks)
    assert notes.starts[3:] == [("s2", 0.5), ("s3", 1.5)]
    assert_idle(scheduler)


@virtual
async def test_a_session_delays_by_name() -> None:
    """A job behind another of its session is late because of it, once the promise has passed."""
    async with make(Notes(takes=5), Quota()) as scheduler:
        first = await scheduler.enqueue("acme", "x", session="s")
        second = await scheduler.enqueue("acme", "x", session="s")
        assert (second.state, second.wait) == ("waiting", 0.0)
        await second.result()
        assert (second.expected, second.delayed_by) == (5.0, frozenset({"session"}))
        assert (first.state, now()) == ("done", 10.0)
    assert_idle(scheduler)
