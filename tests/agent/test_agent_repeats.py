"""What is repeated when the upstream fails, how often, and what a repeat pays."""

import asyncio
from itertools import pairwise

import pytest

from agent import Message
from scheduler import (
    Cost,
    DeadlineExceeded,
    JobFailed,
    Quota,
    Rate,
    Scheduler,
    UpstreamError,
)
from scheduler.testing import Fault
from scheduler.testing.claude.damage import ResetMidStream, Truncate
from scheduler.testing.claude.effects import Effect, ErrorStatus, Overloaded, Ramp, RateLimited, SpendCap
from scheduler.testing.virtual import run_virtual
from tests.agent.claudes import connected, events, quick
from tests.agent.scheduled import DONE, LOOK, WIDE, scheduled, used


def test_a_limit_of_the_upstream_stops_the_gate_and_is_paid_once() -> None:
    async def main() -> None:
        refused = (429, {"retry-after": "60"})
        async with scheduled(refused, ["Hello."], quotas=WIDE) as (claude, _, scheduler):
            first = asyncio.get_running_loop().create_task(scheduler.submit("acme", "hello"))
            await asyncio.sleep(1)
            second = scheduler.submit("other", "hello")
            await asyncio.gather(first, second)
            assert claude.arrivals == [0, 60, 60]
            statistics = await scheduler.statistics()
            assert (statistics.done, statistics.retried) == (2, 1)

    run_virtual(main())


def test_an_overloaded_upstream_is_asked_less_and_less_often_and_not_for_ever() -> None:
    async def main() -> None:
        async with scheduled((529, {}), quotas=WIDE) as (claude, agent, scheduler):
            agent._draw = lambda: 0.999
            with pytest.raises(UpstreamError) as caught:
                await scheduler.submit("acme", "hello")
            waits = [later - earlier for earlier, later in pairwise(claude.arrivals)]
            assert caught.value.kind == "overloaded"
            assert len(claude.arrivals) == 30
            assert waits[:6] == pytest.approx([0.4995 * 2**n for n in range(6)])
            assert max(waits) <= 30
            # Time has passed, so only a bound can be seen: one permit, not thirty.
            assert (await used(scheduler))[0] <= 1

    run_virtual(main())


def test_a_deadline_bounds_the_repeats() -> None:
    async def main() -> None:
        async with scheduled((529, {}), quotas=WIDE) as (claude, agent, scheduler):
            agent._draw = lambda: 0.999
            with pytest.raises(DeadlineExceeded):
                await scheduler.submit("acme", "hello", timeout=3)
            assert max(claude.arrivals) < 3

    run_virtual(main())


def test_a_tool_that_has_acted_is_not_repeated() -> None:
    async def main() -> None:
        async with scheduled(LOOK, (529, {}), quotas=WIDE) as (claude, _, scheduler):
            with pytest.raises(UpstreamError):
                await scheduler.submit("acme", "look")
            assert len(claude.arrivals) == 2
            assert await used(scheduler) == (2, 10, 5)

    run_virtual(main())


def test_an_upstream_error_of_a_hook_is_not_taken_for_our_own() -> None:
    async def main() -> None:
        async with scheduled(DONE, quotas=WIDE) as (_, agent, scheduler):
            error = UpstreamError("overloaded", 529)

            asked: list[Message] = []

            @agent.on_before_message
            async def fail(message: Message) -> None:
                asked.append(message)
                raise error

            with pytest.raises(UpstreamError) as caught:
                await scheduler.submit("acme", "hello")
            assert caught.value is error
            assert len(asked) == 1
            assert await used(scheduler) == (0, 0, 0)

    run_virtual(main())


def test_what_a_refused_try_used_is_not_taken_for_the_next_ones() -> None:
    async def main() -> None:
        async with scheduled((529, {}), (500, {}), quotas=WIDE, max_attempts=1) as (claude, _, scheduler):
            with pytest.raises(JobFailed):
                await scheduler.submit("acme", "hello", cost=Cost(1, 50, 20))
            assert len(claude.arrivals) == 2
            assert await used(scheduler) == (1, 50, 20)

    run_virtual(main())


def test_the_last_try_is_settled_with_what_is_known() -> None:
    async def main() -> None:
        cut = events(["Hello."])[:3]
        async with scheduled(cut, quotas=WIDE, max_attempts=1) as (_, _, scheduler):
            with pytest.raises(JobFailed, match="truncated_stream"):
                await scheduler.submit("acme", "hello", cost=Cost(1, 50, 20))
            assert await used(scheduler) == (1, 10, 2)

    run_virtual(main())


ONCE: list[Effect] = [
    RateLimited(retry_after="0.01"),
    Ramp(retry_after="0.01"),
    RateLimited(retry_after=None, should_retry=True),
    Overloaded(),
    ErrorStatus(status=500),
    ErrorStatus(status=409),
    ResetMidStream(after_chunks=1),
    Truncate(after_chunks=1),
]


@pytest.mark.parametrize("effect", ONCE, ids=repr)
async def test_one_failure_is_repeated_once_over_the_wire(effect: Effect) -> None:
    async with (
        connected(quick(effect, times=1)) as (claude, agent),
        Scheduler(agent.handle, quotas=Quota(Rate(2, burst=5))) as scheduler,
    ):
        agent.on_before_message(scheduler.on_before_message)
        reply = await scheduler.submit("acme", "hello", session="chat")
        assert reply.usage.requests == 1
        async with agent.sessions.turn(reply.session_id) as turn:
            assert len(turn.history) == 2
    assert [attempt.retry_count for attempt in claude.requests] == [0, 0]


@pytest.mark.parametrize(
    "effect", [SpendCap(), RateLimited(retry_after=None), ErrorStatus(status=402)], ids=repr
)
async def test_a_spent_budget_is_not_asked_again(effect: Effect) -> None:
    async with connected(quick(effect)) as (claude, agent), Scheduler(agent.handle) as scheduler:
        with pytest.raises(UpstreamError):
            await scheduler.submit("acme", "hello")
    assert len(claude.requests) == 1


async def test_three_tries_are_three_requests_and_not_nine() -> None:
    async with (
        connected(quick(ErrorStatus(status=500, should_retry=True))) as (claude, agent),
        Scheduler(agent.handle, max_attempts=3) as scheduler,
    ):
        with pytest.raises(JobFailed, match="failed after 3 attempts: server_error") as caught:
            await scheduler.submit("acme", "hello")
    assert len(claude.requests) == 3
    assert isinstance(caught.value.__cause__, UpstreamError)


async def test_jobs_in_one_session_keep_their_order_over_the_wire() -> None:
    async with connected() as (claude, agent), Scheduler(agent.handle) as scheduler:
        claude.add_faults(Fault(ErrorStatus(status=500), times=1))
        prompts = ["one", "two", "three"]
        await asyncio.gather(*(scheduler.submit("acme", prompt, session="s") for prompt in prompts))
        session = await agent.sessions.named("acme", "s")
        async with agent.sessions.turn(session.id) as turn:
            assert [message["content"] for message in turn.history][::2] == prompts
