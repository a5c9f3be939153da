"""The agent behind a scheduler: one hook queues, refuses, and lets the first message of a job pass free."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from agent import Agent, Message, Reply, TooManyTurns
from scheduler import (
    ErrRateLimited,
    Policy,
    Quota,
    Rate,
    Scheduler,
    UpstreamError,
    Usage,
)
from scheduler.testing.virtual import VirtualClock, run_virtual
from tests.agent.claudes import events, in_memory
from tests.agent.scheduled import DONE, LOOK, WIDE, scheduled, used


async def eight(agent: Agent) -> list[Any]:
    """Eight runs at one instant, each in a session of its own."""
    sessions = [await agent.new_session("acme") for _ in range(8)]
    runs = [agent.run(session.id, "Say hi") for session in sessions]
    return await asyncio.gather(*runs, return_exceptions=True)


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


@pytest.mark.parametrize("told", [None, 0, 3])
def test_a_call_that_only_pings_holds_its_slot_no_longer_than_it_may(told: int | None) -> None:
    """Under a hook only there is no other bound: the client's own counts from the last byte."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        quotas = Quota(Rate(100), concurrency=1)
        pinging = Pinging(None if told is None else events(["Hello."])[:told])
        async with (
            in_memory(call_timeout=50) as (_, agent),
            httpx2.AsyncClient(transport=pinging) as http,
            Scheduler(_none, quotas=quotas, clock=VirtualClock()) as s,
        ):
            agent.client._client = http
            agent.on_before_message(s.on_before_message)
            one, other = [await agent.new_session("acme") for _ in range(2)]
            waits = asyncio.create_task(agent.run(other.id, "other"))
            with pytest.raises(UpstreamError) as caught:
                await agent.run(one.id, "one")
            assert (caught.value.kind, loop.time()) == ("timeout", 50)
            with pytest.raises(UpstreamError):
                await waits
            assert loop.time() == 100

    run_virtual(main())


class Pinging(httpx2.AsyncBaseTransport, httpx2.AsyncByteStream):
    """Tells some events, and then pings for ever; None: says nothing at all."""

    def __init__(self, told: list[bytes] | None) -> None:
        self.told = told

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.told is None:
            await asyncio.sleep(10_000)
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.told or ():
            yield piece
        while True:
            await asyncio.sleep(1)
            yield b'event: ping\ndata: {"type": "ping"}\n\n'


async def _none(job: Any) -> None:
    raise AssertionError("no job was submitted")


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
            # A call that was cut before a word about its usage keeps its estimate: 256 tokens of output.
            assert inputs <= 10 * len(claude.arrivals)
            assert outputs <= 5 * len(claude.arrivals) or 0 <= outputs - 256 <= 5 * (len(claude.arrivals) - 1)
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
