"""Deferred jobs go in message batches: over a real socket, with the real SDK."""

from __future__ import annotations

import asyncio

import pytest

from agent import Agent, BatchDesk, Message, Reply
from scheduler import (
    Grant,
    JobFailed,
    Policy,
    Quota,
    Rate,
    Rung,
    Scheduler,
    Usage,
)
from scheduler.testing import Script
from tests.agent.claudes import CountedGrant, connected, quick, tool, until
from tests.agent.deferring import (
    DEFERRING,
    bodies,
    created,
    crowd,
    deferring,
    pause,
    replies,
    slow,
)

ECHO = Script(contains="echo", echo=True)


async def test_jobs_of_several_tenants_go_in_one_batch() -> None:
    async with deferring(quick(batch_s=10.0, time_scale=0.01, scripts=(ECHO,))) as (claude, scheduler, _):
        tickets = await crowd(scheduler, *(f"echo {number}" for number in range(8)))
        got: list[Reply] = await replies(tickets)
        (requests,) = bodies(claude)
        assert [attempt.path for attempt in claude.requests].count("/v1/messages") == 0
    # Each has its own answer, although results come in an order of their own.
    assert [reply.text for reply in got] == [f"echo {number}" for number in range(8)]
    assert [request["params"]["messages"][0]["content"] for request in requests] == [
        f"echo {number}" for number in range(8)
    ]
    for reply, ticket in zip(got, tickets, strict=True):
        assert reply.usage.input_tokens > 0
        assert reply.usage.output_tokens > 0
        assert reply.message.usage.service_tier == "batch"
        assert reply.receipt is not None
        assert (reply.receipt.deferred, reply.receipt.rung) == (True, 0)
        assert reply.receipt.usage == reply.usage == ticket.receipt.usage
        assert any(ticket.id in request["custom_id"] for request in requests)


async def test_a_batch_goes_when_it_is_full_and_what_comes_later_goes_in_the_next() -> None:
    async with deferring(desk={"max_batch": 3, "window": 0.1}) as (claude, scheduler, _):
        await replies(await crowd(scheduler, *"abcdefg"))
        assert [len(requests) for requests in bodies(claude)] == [3, 3, 1]


async def test_a_batch_has_no_more_bytes_than_the_upstream_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.batches.BYTES_MAX", 1000)
    async with deferring() as (claude, scheduler, _):
        got = await replies(await crowd(scheduler, "a" * 400, "b" * 400, "c" * 5000))
        assert [reply.turns for reply in got] == [1, 1, 1]
        assert [len(requests) for requests in bodies(claude)] == [1, 1, 1]


async def test_rungs_change_a_deferred_request_too() -> None:
    ladder = [
        Rung(0.2, model="claude-sonnet-5"),
        Rung(0.3, max_tokens=3),
        Rung(0.5, defer="batch"),
    ]
    policy = Policy(max_wait=None, ladder=ladder)
    async with deferring(policy=policy) as (claude, scheduler, _):
        (reply,) = await replies(await crowd(scheduler, "hello"))
        ((request,),) = bodies(claude)
    assert request["params"]["max_tokens"] == 3
    assert reply.usage.output_tokens == 3
    assert (reply.receipt.deferred, reply.receipt.max_tokens) == (True, 3)


async def test_the_line_goes_on_without_those_who_are_deferred() -> None:
    """End to end: the first jobs wait for the rate, those that would wait for too long are deferred."""
    async with (
        connected(slow()) as (_claude, agent),
        BatchDesk(agent, window=0.02, poll=0.02) as desk,
        Scheduler(
            agent.handle, deferred=desk.handle, policy=DEFERRING, quotas=Quota(Rate(5, burst=1))
        ) as scheduler,
    ):
        got = await asyncio.gather(*(scheduler.submit("acme", f"p{n}") for n in range(8)))
        counts = await scheduler.statistics()
    deferred = [reply.receipt.deferred for reply in got]
    assert deferred[:2] + deferred[3:] == [False] * 2 + [True] * 5
    assert (counts.done, counts.failed, counts.running) == (8, 0, 0)


# --- sessions, tools and hooks ------------------------------------------------------------------------------


async def test_a_deferred_job_continues_its_conversation() -> None:
    async with deferring() as (claude, scheduler, _):
        first = await scheduler.enqueue("acme", "one", session="chat")
        begun = await first.result()
        # The second of a session is deferred only once the first is done.
        second = await scheduler.submit("acme", "two", session="chat")
        other = await scheduler.submit("other", "three", session="chat")
        histories = [requests[0]["params"]["messages"] for requests in bodies(claude)]
    assert begun.session_id == second.session_id != other.session_id
    assert [message["content"] for message in histories[1] if message["role"] == "user"] == ["one", "two"]
    assert histories[1][1]["content"][0]["text"] == begun.text
    assert [len(history) for history in histories] == [1, 3, 1]


async def test_a_job_that_is_cancelled_leaves_its_conversation_as_it_was() -> None:
    async with connected(slow()) as (claude, agent), BatchDesk(agent, window=0.02, poll=0.02) as desk:
        async with Scheduler(agent.handle, deferred=desk.handle, policy=DEFERRING) as scheduler:
            await pause(scheduler)
            ticket = await scheduler.enqueue("acme", "one", session="chat")
            await until(lambda: len(created(claude)) == 1)
            assert ticket.cancel()
            with pytest.raises(JobFailed):
                await ticket.result()
        session = await agent.sessions.named("acme", "chat")
        async with agent.sessions.turn(session.id) as turn:
            assert list(turn.history) == []


async def test_a_run_with_tools_goes_on_by_further_batches() -> None:
    asked: list[str] = []

    async def look() -> str:
        asked.append("look")
        return "a view"

    async with deferring(tools=[tool("look", look)]) as (claude, scheduler, _):
        reply = await scheduler.submit("acme", "look out", session="chat")
        assert [len(requests) for requests in bodies(claude)] == [1, 1]
    assert (reply.text, reply.turns, asked) == ("Seen.", 2, ["look"])
    assert reply.usage.requests == 2
    assert reply.receipt.usage == reply.usage


async def test_hooks_see_deferred_messages_and_take_no_permits_for_them() -> None:
    grants: list[CountedGrant] = []
    seen: list[tuple[bool, int]] = []
    after: list[Usage] = []

    async def before(message: Message) -> Grant:
        seen.append((message.deferred, message.turn))
        grants.append(CountedGrant())
        return grants[-1]

    async def note(message: Message, reply: Reply) -> None:
        after.append(reply.usage)

    # A permit in an hour: a message that took one from the scheduler's hook would wait for it.
    quotas = Quota(Rate.per_hour(1, burst=1))
    async with (
        connected(slow(), tools=[tool()]) as (_claude, agent),
        BatchDesk(agent, window=0.02, poll=0.02) as desk,
        Scheduler(agent.handle, deferred=desk.handle, policy=DEFERRING, quotas=quotas) as scheduler,
    ):
        agent.on_before_message(scheduler.on_before_message)
        agent.on_before_message(before)
        agent.on_after_message(note)
        await pause(scheduler)
        await scheduler.submit("acme", "look out")
        levels = (await scheduler.statistics("acme")).levels
    assert seen == [(True, 1), (True, 2)]
    assert [grant.settled for grant in grants] == [[Usage(0, 0, 0)]] * 2
    assert [usage.requests for usage in after] == [1, 1]
    assert levels.get("requests", 1) == 1


async def test_a_hook_can_refuse_a_deferred_message() -> None:
    async def veto(message: Message) -> None:
        raise PermissionError("no")

    async with connected(slow()) as (claude, agent), BatchDesk(agent) as desk:
        agent.on_before_message(veto)
        async with Scheduler(agent.handle, deferred=desk.handle, policy=DEFERRING) as scheduler:
            await pause(scheduler)
            with pytest.raises(PermissionError):
                await scheduler.submit("acme", "hello")
        assert claude.requests == []


async def test_a_call_made_under_a_deferred_job_has_a_turn_of_its_own() -> None:
    """What a tool asks the model right away is no part of the batch: it takes a permit and a slot."""
    async with connected(slow()) as (_, agent):

        async def look() -> str:
            session = await agent.new_session("acme")
            return (await agent.run(session.id, "a question")).text

        asking = Agent(agent.client, model="claude-haiku-4-5", tools=[tool("look", look)])
        async with (
            BatchDesk(asking, window=0.02, poll=0.02) as desk,
            Scheduler(asking.handle, deferred=desk.handle, policy=DEFERRING) as scheduler,
        ):
            agent.on_before_message(scheduler.on_before_message)
            await pause(scheduler, 0.8)
            reply = await scheduler.submit("acme", "look out")
            granted = (await scheduler.statistics()).granted
    assert reply.turns == 2
    assert granted == 3  # the pause's, the job, and the tool's question


async def test_headers_of_single_requests_are_left_out() -> None:
    async with deferring(headers=lambda message: {"x-tenant-id": message.tenant}) as (claude, scheduler, _):
        await scheduler.submit("acme", "hello")
        ((request,),) = bodies(claude)
        assert claude.requests[0].tenant is None
    assert set(request["params"]) == {"model", "max_tokens", "messages"}
