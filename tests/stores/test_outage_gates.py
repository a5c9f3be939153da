"""The store is down, and a share of each gate is granted in process, charged to it afterwards, and heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler import (
    Cost,
    ErrRateLimited,
    Grant,
    Outage,
    Policy,
    Quota,
    Rate,
    Scheduler,
    Signal,
    Upstream,
    Usage,
)
from scheduler.core.signals import Answer, What
from scheduler.runtime.values import GateStatistics
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.returning import Returning
from tests.conformance.stored import WRONG, WRONG_AT_GATES
from tests.stores.callers import rows, until
from tests.stores.outages import QUARTER, Ears, Mortal, fall, mortal, mortal_server, rise, watched

__all__ = ["mortal", "mortal_server"]

STRICT = Policy.strict()
HOURLY = Quota(Rate(1, per=3600, burst=8))
OPEN = Quota()
HALF_AN_HOUR = Signal(Answer.RATE_LIMITED, retry_after=1800)


@asynccontextmanager
async def gated(
    mortal: Mortal, gate: Quota | Upstream = HOURLY, outage: Outage = QUARTER, **settings: Any
) -> AsyncIterator[tuple[Scheduler, Ears]]:
    """A process whose tenants have no limits, behind one gate."""
    async with watched(mortal.dsn, outage, OPEN, gates={"m": gate}, **settings) as watching:
        yield watching


async def take(scheduler: Scheduler, tenant: str = "acme", **wishes: Any) -> Grant:
    return await scheduler.admit(tenant, policy=STRICT, **wishes).__aenter__()


async def reason(scheduler: Scheduler, tenant: str = "acme", **wishes: Any) -> str:
    with pytest.raises(ErrRateLimited) as found:
        await take(scheduler, tenant, **wishes)
    return str(found.value.reason)


async def gate_of(scheduler: Scheduler, name: str = "m") -> GateStatistics:
    return (await scheduler.statistics()).gates[name]


async def test_a_share_of_a_gate_is_granted_whoever_asks(mortal: Mortal) -> None:
    """A quarter of one in an hour with a burst of eight: two at once, of whatever tenant."""
    async with gated(mortal) as (scheduler, ears):
        await fall(scheduler, ears, mortal)
        grants = [await take(scheduler, tenant) for tenant in "ab"]
        assert [await reason(scheduler, tenant) for tenant in "abc"] == ["gate"] * 3
        assert round((await scheduler.quote("c")).expected / 3600) == 4
        found = await gate_of(scheduler)
        assert (found.running, found.limits["requests"]) == (2, 1 / 60 / 4)
        assert await reason(scheduler, cost=Cost(3)) == "store_down", "it fits the whole of the gate"
        for grant in grants:
            grant.settle()
        await rise(scheduler, ears, mortal)
        found = await gate_of(scheduler)
        assert found.running == 0
        assert found.levels["requests"] == pytest.approx(6, abs=0.01)


async def test_gates_of_tokens_and_slots(mortal: Mortal) -> None:
    """Slots are rounded down, but there is one; real usage counts here and there."""
    gate = Quota(output_tokens=Rate(1, per=3600, burst=800), concurrency=7)
    async with gated(mortal, gate, Outage.admit(0.1, patience=0.3)) as (scheduler, ears):
        await fall(scheduler, ears, mortal)
        one = await take(scheduler, cost=Cost(1, 0, 60))
        assert await reason(scheduler, cost=Cost(1, 0, 10)) == "slot"
        one.settle(Usage(1, 0, 75))
        assert await reason(scheduler, cost=Cost(1, 0, 10)) == "gate"
        other = await take(scheduler, "bolt", cost=Cost(1, 0, 5))
        await rise(scheduler, ears, mortal)
        found = await gate_of(scheduler)
        assert found.running == 1
        assert found.levels["output_tokens"] == pytest.approx(720, abs=0.01)
        other.settle(Usage(1, 0, 20))
        await until(scheduler, running=0)
        found = await gate_of(scheduler)
        assert found.running == 0
        assert found.levels["output_tokens"] == pytest.approx(705, abs=0.01)


async def test_estimates_count_the_tokens_that_a_gate_limits(mortal: Mortal) -> None:
    gate = Quota(output_tokens=Rate(1, per=3600, burst=4000))
    message = SimpleNamespace(tenant="acme", prompt="x" * 400)
    async with gated(mortal, gate) as (scheduler, ears):
        await fall(scheduler, ears, mortal)
        grant = await scheduler.on_before_message(message)
        assert grant is not None
        assert grant.cost.output_tokens == 256
        assert (await gate_of(scheduler)).levels["output_tokens"] == pytest.approx(1000 - 256, abs=1)
        grant.settle(Usage(1, 0, 100))
        assert (await gate_of(scheduler)).levels["output_tokens"] == pytest.approx(900, abs=1)
        await rise(scheduler, ears, mortal)
        assert (await gate_of(scheduler)).levels["output_tokens"] == pytest.approx(3900, abs=1)


async def test_output_beyond_the_estimate_is_charged_while_it_comes(mortal: Mortal) -> None:
    """Here at once, and to the store with all else: also of a call that runs on until after that."""
    gate = Quota(output_tokens=Rate(1, per=3600, burst=4000))
    async with gated(mortal, gate) as (scheduler, ears):
        await fall(scheduler, ears, mortal)
        over, runs = [await take(scheduler, cost=Cost(1, 0, 100)) for _ in range(2)]
        for grant in (over, runs):
            grant.grow(300)
            grant.grow(200)
        assert (await gate_of(scheduler)).levels["output_tokens"] == pytest.approx(400, abs=1)
        over.settle(Usage(1, 0, 310))
        await rise(scheduler, ears, mortal)
        assert (await gate_of(scheduler)).levels["output_tokens"] == pytest.approx(4000 - 610, abs=1)
        runs.grow(320)
        runs.settle(Usage(1, 0, 350))
        await until(scheduler, running=0)
        assert (await gate_of(scheduler)).levels["output_tokens"] == pytest.approx(4000 - 660, abs=1)


async def test_a_record_whose_answer_is_lost_is_not_charged_to_the_gate_twice(mortal: Mortal) -> None:
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

    async with gated(mortal, outage=Outage.admit(1, patience=0.3)) as (scheduler, ears):
        scheduler.store.home.__class__ = Deaf  # type: ignore[attr-defined]
        await fall(scheduler, ears, mortal)
        for tenant in "ab":
            (await take(scheduler, tenant)).settle()
        async with scheduler.admit("acme", cost=Cost(2)):
            await rise(scheduler, ears, mortal)
            found = await gate_of(scheduler)
            assert lost == 2
            assert not await rows(mortal.dsn, WRONG_AT_GATES)
            assert found.running == 1
            assert found.levels["requests"] == pytest.approx(4, abs=0.01)
        await until(scheduler, running=0)
        assert (await gate_of(scheduler)).levels["requests"] == pytest.approx(4, abs=0.01)
        for wrong in (WRONG, WRONG_AT_GATES):
            assert not await rows(mortal.dsn, wrong)
        kept = "select tenant, state, kind, gate from waitline.job where kind = 'outage' order by tenant"
        assert await rows(mortal.dsn, kept) == [(name, 2, "outage", None) for name in ("a", "acme", "b")]


async def test_a_gate_that_was_used_before_has_no_more_than_a_share_of_what_is_left(mortal: Mortal) -> None:
    async with gated(mortal) as (scheduler, ears):
        for _ in range(6):
            (await take(scheduler)).settle()
        await until(scheduler, running=0)
        await scheduler.store.hearing.look()  # type: ignore[attr-defined]
        await fall(scheduler, ears, mortal)
        assert (await gate_of(scheduler)).levels["requests"] == pytest.approx(0.5, abs=0.01)
        await rise(scheduler, ears, mortal)
        await fall(scheduler, ears, mortal, 2)
        assert (await gate_of(scheduler)).levels["requests"] == pytest.approx(0.5, abs=0.01)


# --- what is known of the upstream ----------------------------------------------------------------------


async def test_a_pause_that_was_heard_before_holds(mortal: Mortal) -> None:
    """Whether the store knows of it, or is about to be told."""
    async with gated(mortal, OPEN) as (scheduler, ears):
        grant = await take(scheduler)
        grant.hear(HALF_AN_HOUR)
        await fall(scheduler, ears, mortal)
        assert await reason(scheduler) == "pause"
        assert 1700 < (await gate_of(scheduler)).paused <= 1800
        await rise(scheduler, ears, mortal)
        assert await reason(scheduler, "bolt") == "pause"
        assert 1700 < (await gate_of(scheduler)).paused <= 1800


async def test_limits_and_slots_that_were_learned_hold_in_part(mortal: Mortal) -> None:
    gate = Quota(Rate.per_minute(60, burst=60), concurrency=32)
    async with gated(mortal, gate) as (scheduler, ears):
        grant = await take(scheduler)
        grant.hear(Signal(Answer.ACCEPTED, limits={"requests": 240}))
        grant.hear(Signal(Answer.OVERLOADED))
        grant.hear(Signal(Answer.OVERLOADED))
        grant.settle()
        await until(scheduler, running=0)
        slots = (await gate_of(scheduler)).slots
        assert slots is not None
        assert slots < 32
        await scheduler.store.hearing.look()  # type: ignore[attr-defined]
        await fall(scheduler, ears, mortal)
        found = await gate_of(scheduler)
        assert (found.limits["requests"], found.slots, found.running) == (60, max(1, slots // 4), 0)
        await rise(scheduler, ears, mortal)


async def test_a_closed_gate_stays_closed_and_opens_by_hand(mortal: Mortal) -> None:
    async with gated(mortal) as (scheduler, ears):
        grant = await take(scheduler)
        grant.hear(Signal(Answer.SPEND_LIMIT))
        grant.settle(Usage(0, 0, 0))
        await until(scheduler, running=0)
        await fall(scheduler, ears, mortal)
        assert (await gate_of(scheduler)).closed
        assert await reason(scheduler, "bolt") == "spend_limit"
        scheduler.resume("m")
        (await take(scheduler)).settle()
        await rise(scheduler, ears, mortal)
        while (await gate_of(scheduler)).closed:
            pass


async def test_a_probe_that_is_accepted_meanwhile_opens_the_gate_for_all(mortal: Mortal) -> None:
    gate = Upstream(OPEN, spend_probe=1e-6)
    async with gated(mortal, gate) as (scheduler, ears):
        grant = await take(scheduler)
        grant.hear(Signal(Answer.SPEND_LIMIT))
        grant.settle(Usage(0, 0, 0))
        await until(scheduler, running=0)
        await fall(scheduler, ears, mortal)
        assert (await gate_of(scheduler)).closed
        probe = await take(scheduler)
        probe.ensure_open()
        probe.hear(Signal(Answer.ACCEPTED))
        assert not (await gate_of(scheduler)).closed
        probe.settle()
        await rise(scheduler, ears, mortal)
        while (await gate_of(scheduler)).closed:
            pass


@pytest.mark.parametrize("granted_here", [True, False])
async def test_what_an_upstream_says_meanwhile_counts_here_and_is_told_later(
    mortal: Mortal, granted_here: bool
) -> None:
    """To the call of a block that this process granted, or of one that the store did before."""
    async with (
        gated(mortal, OPEN) as (scheduler, ears),
        Scheduler(store=PostgresStore(mortal.dsn), quotas=OPEN) as other,
    ):
        grant = None if granted_here else await take(scheduler)
        await fall(scheduler, ears, mortal)
        grant = grant or await take(scheduler)
        grant.hear(HALF_AN_HOUR)
        assert await reason(scheduler, "bolt") == "pause"
        await rise(scheduler, ears, mortal)
        assert (await ears.until(What.PAUSED)).gate == "m"
        with pytest.raises(ErrRateLimited) as found:
            await other.admit("cope", policy=STRICT).__aenter__()
        assert found.value.reason == "pause"
        grant.settle()


async def test_a_limit_that_is_named_meanwhile_is_shared(mortal: Mortal) -> None:
    async with gated(mortal, Quota(Rate.per_minute(60, burst=60))) as (scheduler, ears):
        await fall(scheduler, ears, mortal)
        grant = await take(scheduler)
        grant.hear(Signal(Answer.ACCEPTED, limits={"requests": 120}, remaining={"requests": 8}))
        found = await gate_of(scheduler)
        assert found.limits["requests"] == 30
        assert found.levels["requests"] == pytest.approx(2, abs=0.5)
        await rise(scheduler, ears, mortal)
        await ears.until(What.LIMIT)
        assert (await gate_of(scheduler)).limits["requests"] == 120


async def test_a_gate_that_closes_meanwhile_lets_no_call_begin(mortal: Mortal) -> None:
    async with gated(mortal, OPEN) as (scheduler, ears):
        await fall(scheduler, ears, mortal)
        first, second = await take(scheduler), await take(scheduler, "bolt")
        first.hear(Signal(Answer.SPEND_LIMIT))
        with pytest.raises(ErrRateLimited) as found:
            second.ensure_open()
        assert found.value.reason == "spend_limit"
        await rise(scheduler, ears, mortal)
        with pytest.raises(ErrRateLimited):
            second.ensure_open()
        await ears.until(What.CLOSED)
        assert (await gate_of(scheduler)).closed


async def test_who_waits_at_a_gate_goes_to_the_store_when_it_is_back(mortal: Mortal) -> None:
    """One by one, by the fair order between tenants here, and by the store's after that."""
    order: list[str] = []

    async def ask(scheduler: Scheduler, tenant: str) -> None:
        async with scheduler.admit(tenant):
            order.append(tenant)

    gate = Quota(Rate(1, per=3600, burst=20))
    async with gated(mortal, gate, Outage.admit(0.1, patience=0.3)) as (scheduler, ears):
        async with asyncio.TaskGroup() as group:
            await fall(scheduler, ears, mortal)
            for _ in range(2):
                (await take(scheduler)).settle()
            for tenant in ("acme", "acme", "bolt"):
                group.create_task(ask(scheduler, tenant))
            while (await gate_of(scheduler)).waiting < 3:  # noqa: ASYNC110
                await asyncio.sleep(0)  # what is answered without the database takes no time
            assert not order
            await rise(scheduler, ears, mortal)
        await until(scheduler, waiting=0, running=0)
        assert sorted(order) == ["acme", "acme", "bolt"]
        assert (await gate_of(scheduler)).levels["requests"] == pytest.approx(15, abs=0.01)
