"""The agent behind a scheduler: one hook queues, refuses, and lets the first message of a job pass free."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from agent import Agent, Message, Reply, TooManyTurns
from scheduler import (
    Cost,
    DeadlineExceeded,
    ErrRateLimited,
    JobFailed,
    Policy,
    Quota,
    Rate,
    Scheduler,
    UpstreamError,
    Usage,
)
from scheduler.testing import Fault
from scheduler.testing.claude.damage import ResetMidStream, Truncate
from scheduler.testing.claude.effects import Effect, ErrorStatus, Overloaded, Ramp, RateLimited, SpendCap
from scheduler.testing.virtual import VirtualClock, run_virtual
from tests.agent.claudes import InMemoryClaude, connected, events, in_memory, quick, tool

LOOK = ["Wait.", {"name": "look"}]
DONE = ["Seen."]
TOKENS = Rate.per_minute(6000)
WIDE = Quota(Rate(2, burst=100), input_tokens=TOKENS, output_tokens=TOKENS)


async def eight(agent: Agent) -> list[Any]:
    """Eight runs at one instant, each in a session of its own."""
    sessions = [await agent.new_session("acme") for _ in range(8)]
    runs = [agent.run(session.id, "Say hi") for session in sessions]
    return await asyncio.gather(*runs, return_exceptions=True)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_queue_mode_starts_eight_at_their_exact_times() -> None:
    async def main() -> None:
        quotas = Quota(Rate(2, burst=5))
        async with in_memory() as (claude, agent), Scheduler(_none, quotas=quotas, clock=VirtualClock()) as s:
            agent.on_before_message(s.on_before_message)
            replies = await eight(agent)
        assert [reply.text for reply in replies] == ["Hello."] * 8
        assert claude.arrivals == [0, 0, 0, 0, 0, 0.5, 1.0, 1.5]

    run_virtual(main())


def test_strict_mode_refuses_through_the_same_hook() -> None:
    async def main() -> None:
        quotas = Quota(Rate(2, burst=5))
        strict = Scheduler(_none, quotas=quotas, policy=Policy.strict(), clock=VirtualClock())
        async with in_memory() as (claude, agent), strict:
            agent.on_before_message(strict.on_before_message)
            results = await eight(agent)
        refused = [result for result in results if isinstance(result, ErrRateLimited)]
        assert len([result for result in results if isinstance(result, Reply)]) == 5
        assert [error.retry_after for error in refused] == [0.5, 1.0, 1.5]
        assert str(refused[0]) == "tenant 'acme' is rate limited: retry after 0.5s"
        assert claude.arrivals == [0] * 5

    run_virtual(main())


async def _none(job: Any) -> None:
    raise AssertionError("no job was submitted")


@asynccontextmanager
async def scheduled(
    *answers: Any, hooked: bool = True, **options: Any
) -> AsyncIterator[tuple[InMemoryClaude, Agent, Scheduler]]:
    """An agent in memory behind a scheduler in virtual time."""
    async with (
        in_memory(*answers, tools=[tool()]) as (claude, agent),
        Scheduler(agent.handle, clock=VirtualClock(), **options) as scheduler,
    ):
        if hooked:
            agent.on_before_message(scheduler.on_before_message)
        yield claude, agent, scheduler


async def used(scheduler: Scheduler, quota: Quota = WIDE) -> tuple[float, ...]:
    """What of a tenant's bursts is gone; nothing if the tenant is forgotten. Only while no time passes."""
    levels = (await scheduler.statistics("acme")).levels
    bursts = {"requests": 100, "input_tokens": 6000, "output_tokens": 6000}
    return tuple(bursts[name] - levels.get(name, bursts[name]) for name in bursts)


@pytest.mark.parametrize("hooked", [True, False])
def test_every_message_of_a_job_is_paid_once_with_and_without_the_hook(hooked: bool) -> None:
    async def main() -> None:
        async with scheduled(LOOK, LOOK, DONE, quotas=WIDE, hooked=hooked) as (claude, _, scheduler):
            reply = await scheduler.submit("acme", "look")
            assert (reply.text, reply.turns, reply.usage) == ("Seen.", 3, Usage(3, 30, 15))
            assert await used(scheduler) == (3, 30, 15)
            assert claude.arrivals == [0, 0, 0]
            assert (await scheduler.statistics()).running == 0

    run_virtual(main())


def test_the_first_message_is_free_and_later_ones_wait_their_turn() -> None:
    async def main() -> None:
        quotas = Quota(Rate(2, burst=1))
        async with scheduled(LOOK, LOOK, DONE, quotas=quotas) as (claude, _, scheduler):
            await scheduler.submit("acme", "look")
        assert claude.arrivals == [0, 0.5, 1.0]

    run_virtual(main())


def test_later_messages_wait_even_under_a_strict_policy() -> None:
    async def main() -> None:
        quotas = Quota(Rate(2, burst=1))
        async with scheduled(LOOK, DONE, quotas=quotas, policy=Policy.strict()) as (claude, _, scheduler):
            await scheduler.submit("acme", "look")
        assert claude.arrivals == [0, 0.5]

    run_virtual(main())


def test_a_full_house_of_tool_loops_does_not_stand_still() -> None:
    async def main() -> None:
        quotas = Quota(Rate(10, burst=1), concurrency=1)
        answers = [LOOK, LOOK, DONE] * 4 + [DONE]
        async with scheduled(*answers, quotas=quotas, max_running=1) as (claude, _, scheduler):
            jobs = [scheduler.submit("acme", "look") for _ in range(4)]
            replies = await asyncio.gather(*jobs)
        assert [reply.turns for reply in replies] == [3] * 4
        assert claude.arrivals == pytest.approx([n / 10 for n in range(12)])

    run_virtual(main())


def test_another_schedulers_hook_does_not_pay_for_the_job() -> None:
    async def main() -> None:
        async with (
            Scheduler(_none, quotas=WIDE, clock=VirtualClock()) as other,
            scheduled(LOOK, DONE, quotas=WIDE, hooked=False) as (_, agent, scheduler),
        ):
            agent.on_before_message(other.on_before_message)
            await scheduler.submit("acme", "look")
            assert await used(scheduler) == await used(other) == (2, 20, 10)

    run_virtual(main())


class Veto(Exception):
    pass


def test_a_veto_gives_the_jobs_permits_back() -> None:
    async def main() -> None:
        async with scheduled(DONE, quotas=WIDE) as (claude, agent, scheduler):

            @agent.on_before_message
            async def veto(message: Message) -> None:
                raise Veto

            with pytest.raises(Veto):
                await scheduler.submit("acme", "hello")
            assert await used(scheduler) == (0, 0, 0)
            assert claude.arrivals == []

    run_virtual(main())


@pytest.mark.parametrize("hooked", [True, False])
def test_whenever_a_job_is_cancelled_what_was_not_sent_is_given_back(hooked: bool) -> None:
    """Cancel after the n-th step of the loop, for every n until the job ends by itself."""

    async def explore(steps: int) -> bool:
        async with scheduled(LOOK, DONE, quotas=WIDE, hooked=hooked) as (claude, _, scheduler):
            task = asyncio.get_running_loop().create_task(scheduler.submit("acme", "look", session="chat"))
            for _ in range(steps):
                await asyncio.sleep(0)
            cancelled = task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            requests, inputs, outputs = await used(scheduler)
            assert requests - len(claude.arrivals) in (0, 1)  # 1: the call had begun, short of the wire
            assert inputs <= 10 * len(claude.arrivals)
            assert outputs <= 5 * len(claude.arrivals)
            statistics = await scheduler.statistics()
            assert (statistics.running, statistics.waiting) == (0, 0)
            # Nobody is locked out of the session.
            assert (await scheduler.submit("acme", "hello", session="chat")).text
            return not cancelled

    for steps in range(1000):
        if run_virtual(explore(steps)):
            assert steps > 10
            return
    raise AssertionError("the job never ended")


def test_a_jobs_session_is_the_tenants_own() -> None:
    async def main() -> None:
        async with scheduled(["Hello."]) as (_, agent, scheduler):
            mine, again, theirs, alone = [
                await scheduler.submit(tenant, "hello", session=session)
                for tenant, session in (("a", "chat"), ("a", "chat"), ("b", "chat"), ("a", None))
            ]
            assert mine.session_id == again.session_id != theirs.session_id
            assert alone.session_id is None
            created = await agent.new_session("a")
            assert (await scheduler.submit("a", "hello", session=created.id)).session_id == created.id
            assert len(agent.sessions) == 3  # type: ignore[arg-type]
            async with agent.sessions.turn(mine.session_id) as turn:
                assert len(turn.history) == 4

    run_virtual(main())


def test_hooks_see_which_job_it_is() -> None:
    async def main() -> None:
        async with scheduled() as (_, agent, scheduler):
            seen: list[Message] = []

            @agent.on_before_message
            async def note(message: Message) -> None:
                seen.append(message)

            ticket = await scheduler.enqueue("acme", "hello")
            await ticket.result()
            assert [(message.job_id, message.session_id) for message in seen] == [(ticket.id, None)]

    run_virtual(main())


def test_too_many_turns_reaches_the_caller() -> None:
    async def main() -> None:
        async with scheduled(LOOK, quotas=WIDE) as (_, _, scheduler):
            with pytest.raises(TooManyTurns):
                await scheduler.submit("acme", "look")
            assert await used(scheduler) == (10, 100, 50)

    run_virtual(main())


# --- what a repeat pays, and how often ---------------------------------------------------------------------


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
