"""What an upstream says reaches the gate: limits, pauses, capacity and spending, through the real SDK."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from agent import Message
from scheduler import (
    Answer,
    ErrRateLimited,
    Job,
    News,
    Policy,
    Quota,
    Rate,
    Scheduler,
    Signal,
    Statistics,
    Ticket,
    Upstream,
    UpstreamError,
)
from scheduler.core.policy import Reason
from scheduler.core.signals import What
from scheduler.testing import Limits
from scheduler.testing.claude.effects import SpendCap
from scheduler.testing.virtual import VirtualClock, run_virtual
from tests.agent.accounts import Account, behind
from tests.agent.claudes import connected, quick

PATIENT = Policy(max_wait=None, max_queue=100_000)
LIMITS = Limits(requests_per_minute=300, burst_s=5)


async def crowd(scheduler: Scheduler, jobs: int, tenants: int = 5) -> list[Ticket]:
    """Jobs of some tenants, in turn."""
    return [await scheduler.enqueue(f"t{number % tenants}", "hello") for number in range(jobs)]


async def finish(tickets: list[Ticket]) -> list[BaseException]:
    """What went wrong with them, once all have ended."""
    results = await asyncio.gather(*(ticket.result() for ticket in tickets), return_exceptions=True)
    return [result for result in results if isinstance(result, BaseException)]


# --- limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("configured", [150, 300, 450])
def test_a_wrong_limit_is_corrected_within_two_minutes(configured: int) -> None:
    """Half too low, right, half too high: at least 95 % of the true limit from then on, and no 429."""

    async def main() -> Account:
        account = Account(LIMITS)
        gate = Quota(Rate.per_minute(configured, burst=10))
        async with behind(account, gates=gate, policy=PATIENT) as (_, scheduler):
            tickets = await crowd(scheduler, 300 * 4)
            await asyncio.sleep(180)
            account.calls, answers = [], account.calls
            assert len([at for at in answers if at[1] == 429 and at[0] > 120]) == 0
            await asyncio.sleep(30)
            used = len(account.statuses(200)) / 150
            assert used >= 0.95
            assert account.statuses(429) == []
            assert not await finish(tickets)
        return account

    run_virtual(main())


def test_a_limit_that_is_lowered_and_raised_is_followed() -> None:
    """The account changes while it is used."""

    async def main() -> None:
        account = Account(LIMITS)
        heard: list[News] = []
        gate = Quota(Rate.per_minute(300, burst=10))
        async with behind(account, gates=gate, policy=PATIENT, listener=heard.append) as (_, scheduler):
            tickets = await crowd(scheduler, 1200)
            for limit in (120, 600):
                await asyncio.sleep(30)
                account.limiter = type(account.limiter)(
                    Limits(requests_per_minute=limit, burst_s=5), account.now()
                )
                await asyncio.sleep(30)
                before = len(account.statuses(200))
                await asyncio.sleep(30)
                assert len(account.statuses(200)) - before == pytest.approx(limit / 2, rel=0.05)
                statistics = await scheduler.statistics()
                assert statistics.gates[""].limits == {"requests": limit}
            assert not await finish(tickets)
        limits = [news.value for news in heard if news.what is What.LIMIT]
        assert limits == [120, 600]

    run_virtual(main())


def test_a_ceiling_holds_against_what_the_upstream_offers() -> None:
    """An operator leaves room for somebody else."""

    async def main() -> None:
        account = Account(LIMITS)
        quota = Quota(Rate.per_minute(300, burst=5))
        async with behind(account, gates=Upstream(quota, ceiling=quota), policy=PATIENT) as (_, scheduler):
            tickets = await crowd(scheduler, 300)
            assert not await finish(tickets)
        assert account.calls[-1][0] >= 58

    run_virtual(main())


# --- pauses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 64])
def test_nobody_asks_before_the_named_time_and_no_crowd_comes_after_it(slots: int) -> None:
    """`retry-after: 171`, with up to 64 calls under way."""

    async def main() -> None:
        def refuse(at: float) -> Any:
            return (429, {"retry-after": "171"}, None) if at < 1 else None

        account = Account(Limits(), refuse)
        gate = Quota(Rate(10, burst=100), concurrency=slots)
        async with behind(account, gates=gate, policy=PATIENT) as (_, scheduler):
            tickets = await crowd(scheduler, 100)
            assert not await finish(tickets)
        refused, answered = account.statuses(429), account.statuses(200)
        assert len(refused) == slots
        assert min(answered) >= max(refused) + 171
        gaps = [later - earlier for earlier, later in pairwise(answered)]
        assert len(answered) == 100
        if slots > 1:
            assert min(gaps) >= 0.1 - 1e-6  # the refill rate, and not the hundred permits of the burst

    run_virtual(main())


def test_growth_that_is_too_fast_is_slowed_down() -> None:
    """A ramp 429: a pause, and then three quarters of the rate."""

    async def main() -> None:
        def refuse(at: float) -> Any:
            return (429, {"retry-after": "2"}, "ramp_limit_exceeded") if 10 <= at < 10.04 else None

        account = Account(Limits(), refuse)
        gate = Quota(Rate(20, burst=1))
        async with behind(account, gates=gate, policy=PATIENT) as (_, scheduler):
            tickets = await crowd(scheduler, 1000)
            await asyncio.sleep(14.5)
            statistics = await scheduler.statistics()
            assert statistics.gates[""].limits == {"requests": 900}
            assert len([at for at in account.statuses(200) if 12.3 <= at < 14.3]) == 30
            assert not await finish(tickets)
            assert (await scheduler.statistics()).gates[""].limits == {"requests": 1200}

    run_virtual(main())


# --- capacity ---------------------------------------------------------------------------------------------


def test_an_overload_of_a_minute_costs_few_calls_and_no_job() -> None:
    """529 for 60 s: at most twice what one slot would ask, full rate within 5 s, everything answered."""

    async def main() -> None:
        def refuse(at: float) -> Any:
            return (529, {}, None) if 10 <= at < 70 else None

        account = Account(Limits(), refuse)
        async with behind(account, gates=Quota(concurrency=64), policy=PATIENT) as (_, scheduler):
            tickets = await crowd(scheduler, 64 * 18)
            await asyncio.sleep(40)
            during = (await scheduler.statistics()).gates[""]
            assert during.slots == 1
            await asyncio.sleep(35)
            assert account.running == 64
            assert (await scheduler.statistics()).gates[""].slots == 64
            assert not await finish(tickets)
        assert account.peak == 64
        assert 0 < len(account.statuses(529)) <= 2 * 60 / 1.0
        assert len(account.statuses(200)) == 64 * 18

    run_virtual(main())


def test_a_few_failures_among_many_cost_little() -> None:
    """One call in a hundred fails with 500: most of the slots stay in use."""

    async def main() -> None:
        count = 0

        def refuse(at: float) -> Any:
            nonlocal count
            count += 1
            return (500, {}, None) if count % 100 == 0 else None

        account = Account(Limits(), refuse)
        async with behind(account, gates=Quota(concurrency=50), policy=PATIENT) as (_, scheduler):
            tickets = await crowd(scheduler, 2000)
            assert not await finish(tickets)
        assert account.calls[-1][0] <= 1.15 * 2000 / 50

    run_virtual(main())


# --- spending ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 64])
async def test_no_call_begins_once_a_spending_limit_was_heard_of(slots: int) -> None:
    """Over a socket: whoever waits, was just granted or comes later is refused."""
    heard: list[str] = []

    def label(message: Message) -> dict[str, str]:
        heard.append("call")
        return {}

    config = quick(SpendCap(), reply_tokens=3)
    async with connected(config, headers=label) as (claude, agent):
        gate = Quota(concurrency=slots)
        async with Scheduler(
            agent.handle, gates=gate, policy=PATIENT, listener=lambda news: heard.append(news.what)
        ) as scheduler:
            scheduler.engine.news.clear()
            hear = scheduler.hear

            def noted(turn: Any, signal: Any) -> None:
                heard.append("answer")
                hear(turn, signal)

            scheduler.hear = noted  # type: ignore[method-assign]
            tickets = await crowd(scheduler, 300)
            errors = await finish(tickets)
            with pytest.raises(ErrRateLimited) as late:
                await scheduler.submit("t1", "hello")
            with pytest.raises(ErrRateLimited) as strict:
                async with scheduler.admit("t1", policy=Policy.strict()):
                    raise AssertionError("admitted")
            statistics: Statistics = await scheduler.statistics()
    asked = heard.index("answer")
    assert "call" not in heard[asked:]
    assert len(claude.requests) == asked <= slots
    assert len(errors) == 300
    assert len([e for e in errors if isinstance(e, UpstreamError) and e.kind == "spend_limit"]) == asked
    refused = [e for e in errors if isinstance(e, ErrRateLimited)]
    assert {e.reason for e in (*refused, late.value, strict.value)} == {"spend_limit"}
    assert len({e.retry_after for e in refused}) == len(refused) == 300 - asked
    assert all(3500 < e.retry_after < 3700 for e in (*refused, late.value, strict.value))
    assert statistics.gates[""].closed
    assert statistics.refused[Reason.SPEND_LIMIT] == 302 - asked


@pytest.mark.parametrize("kind", ["submit", "enqueue", "admit"])
def test_whoever_was_granted_a_slot_in_that_instant_gives_it_back(kind: str) -> None:
    """One call ends and lets the next in; another brings the bad news before that one has begun to run."""

    async def main() -> None:
        begun: list[Any] = []
        go = asyncio.Event()

        async def handler(job: Job) -> None:
            begun.append(job.prompt)
            await go.wait()
            if job.prompt == "bad news":
                job.hear(Signal(Answer.SPEND_LIMIT))

        async with Scheduler(handler, gates=Quota(concurrency=2), clock=VirtualClock()) as scheduler:

            async def block() -> None:
                async with scheduler.admit("acme"):
                    begun.append("block")

            first = asyncio.create_task(scheduler.submit("acme", "first"))
            bad = asyncio.create_task(scheduler.submit("acme", "bad news"))
            await asyncio.sleep(0)
            if kind == "enqueue":
                waiting: Any = (await scheduler.enqueue("acme", "late")).result()
            else:
                waiting = asyncio.create_task(
                    block() if kind == "admit" else scheduler.submit("acme", "late")
                )
            await asyncio.sleep(0)
            go.set()
            await asyncio.gather(first, bad)
            with pytest.raises(ErrRateLimited, match="spend_limit"):
                await waiting
            assert begun == ["first", "bad news"]
            statistics = await scheduler.statistics()
            assert (statistics.running, statistics.waiting) == (0, 0)

    run_virtual(main())


def test_a_spending_limit_is_probed_once_an_hour_until_it_is_lifted() -> None:
    """Nothing else is let through, and the first accepted probe opens the gate."""

    async def main() -> None:
        def refuse(at: float) -> Any:
            return (429, {}, "enforced_spend_limit_reached") if 10 <= at < 9_000 else None

        account = Account(Limits(), refuse)
        heard: list[News] = []
        async with behind(account, gates=Quota(), listener=heard.append) as (_, scheduler):

            async def one(number: int) -> str:
                await asyncio.sleep(10 * number)
                try:
                    await scheduler.submit(f"t{number % 5}", "hello")
                except (ErrRateLimited, UpstreamError) as error:
                    return getattr(error, "reason", None) or error.kind  # type: ignore[union-attr]
                return "answered"

            results = await asyncio.gather(*(one(number) for number in range(1200)))
        assert account.statuses(429) == [10, 3620, 7230]
        assert results.count("answered") == 1 + (12_000 - 10_840) // 10
        assert [news.what for news in heard] == [What.CLOSED, What.OPENED]
        assert account.statuses(200)[1] == 10_840

    run_virtual(main())


def test_an_operator_can_open_it_at_once() -> None:
    """`scheduler.resume()`."""

    async def main() -> None:
        account = Account(Limits(), lambda at: (402, {}, None) if at < 5 else None)
        async with behind(account, gates={"haiku": Quota()}) as (_, scheduler):
            with pytest.raises(UpstreamError):
                await scheduler.submit("acme", "hello")
            await asyncio.sleep(10)
            with pytest.raises(ErrRateLimited):
                await scheduler.submit("acme", "hello")
            with pytest.raises(ValueError, match=r"gate: must be one of \['haiku'\], got 'opus'"):
                scheduler.resume("opus")
            scheduler.resume("haiku")
            await scheduler.submit("acme", "hello")
            scheduler.resume()

    run_virtual(main())
