"""Hooks run in order; the first to raise stops the rest; what they grant is settled exactly once."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agent import Agent, Message, Reply, ToolCall
from scheduler import Grant, UpstreamError, Usage
from scheduler.testing import Latency
from scheduler.testing.claude.damage import ResetMidStream
from scheduler.testing.claude.effects import CloseBeforeHead, Overloaded
from scheduler.testing.virtual import run_virtual
from tests.agent.claudes import SECRET, CountedGrant, connected, in_memory, quick, tool

LOOK = ["Wait.", {"name": "look"}]
DONE = ["Seen."]


class Veto(Exception):
    pass


def granting(grants: list[CountedGrant], suspend: bool = False) -> Callable[[Any], Any]:
    """A hook that returns a new grant each time and keeps it in a list."""

    async def hook(subject: Any) -> Grant:
        if suspend:
            await asyncio.sleep(0)
        grants.append(CountedGrant())
        return grants[-1]

    return hook


async def vetoing(subject: Any, reply: Reply | None = None) -> None:
    await asyncio.sleep(0)
    raise Veto("no")


async def run(agent: Agent, prompt: str = "look") -> Reply:
    session = await agent.new_session("acme")
    return await agent.run(session.id, prompt)


def settled(grants: list[CountedGrant]) -> list[list[Usage | None]]:
    return [grant.settled for grant in grants]


async def test_hooks_run_in_the_order_in_which_they_were_registered() -> None:
    seen: list[str] = []
    async with in_memory(DONE) as (_, agent):

        @agent.on_before_message
        async def first(message: Message) -> None:
            await asyncio.sleep(0)
            seen.append("first")

        @agent.on_before_message
        async def second(message: Message) -> None:
            seen.append("second")

        @agent.on_after_message
        async def third(message: Message, reply: Reply) -> None:
            seen.append("third")

        @agent.on_after_message
        async def fourth(message: Message, reply: Reply) -> None:
            seen.append("fourth")

        await run(agent)
    assert seen == ["first", "second", "third", "fourth"]
    assert first.__name__ == "first"


async def test_the_first_to_raise_stops_the_rest_and_nothing_is_sent() -> None:
    async with in_memory(DONE) as (claude, agent):
        grants: list[CountedGrant] = []
        agent.on_before_message(granting(grants))
        error = Veto("mine")

        @agent.on_before_message
        async def veto(message: Message) -> None:
            raise error

        agent.on_before_message(granting(grants))
        with pytest.raises(Veto) as caught:
            await run(agent)
    assert caught.value is error
    assert claude.arrivals == []
    assert settled(grants) == [[Usage(0, 0, 0)]]


async def test_a_granted_message_is_settled_with_what_it_used() -> None:
    async with in_memory(DONE) as (_, agent):
        grants: list[CountedGrant] = []
        agent.on_before_message(granting(grants))
        agent.on_before_message(granting(grants))

        @agent.on_after_message
        async def late(message: Message, reply: Reply) -> None:
            assert settled(grants) == [[Usage(1, 10, 5)]] * 2
            raise Veto

        with pytest.raises(Veto):
            await run(agent)
    assert settled(grants) == [[Usage(1, 10, 5)]] * 2


async def test_each_message_and_each_tool_call_has_its_own_grants() -> None:
    async with in_memory(LOOK, DONE, tools=[tool()]) as (_, agent):
        messages: list[CountedGrant] = []
        calls: list[CountedGrant] = []
        agent.on_before_message(granting(messages))
        agent.on_tool_call(granting(calls))
        assert (await run(agent)).usage == Usage(2, 20, 10)
    assert settled(messages) == [[Usage(1, 10, 5)]] * 2
    assert settled(calls) == [[None]]


async def test_a_vetoed_tool_call_fails_the_run_and_is_given_back() -> None:
    async def never() -> None:
        raise AssertionError("the tool was called")

    async with in_memory(LOOK, DONE, tools=[tool("look", never)]) as (claude, agent):
        calls: list[CountedGrant] = []
        agent.on_tool_call(granting(calls))
        agent.on_tool_call(vetoing)
        with pytest.raises(Veto):
            await run(agent)
    assert len(claude.arrivals) == 1
    assert settled(calls) == [[Usage(0, 0, 0)]]


async def test_the_same_grant_from_two_hooks_is_one_grant() -> None:
    grant = CountedGrant()

    async def hook(message: Message) -> Grant:
        return grant

    async with in_memory(DONE) as (_, agent):
        agent.on_before_message(hook)
        agent.on_before_message(hook)
        await run(agent)
    assert grant.settled == [Usage(1, 10, 5)]


async def test_what_is_no_grant_is_a_clear_error_and_gives_the_others_back() -> None:
    async def wrong(message: Message) -> Any:
        return True

    async with in_memory(DONE) as (_, agent):
        grants: list[CountedGrant] = []
        agent.on_before_message(granting(grants))
        agent.on_before_message(wrong)
        with pytest.raises(TypeError, match="must return a Grant or None, got bool"):
            await run(agent)
        with pytest.raises(TypeError, match=r"^hook: "):
            agent.on_before_message(None)  # type: ignore[type-var]
    assert settled(grants) == [[Usage(0, 0, 0)]]


async def test_a_grant_that_cannot_be_settled_does_not_keep_the_others_from_it() -> None:
    class Broken(CountedGrant):
        def settle(self, usage: Usage | None = None) -> None:
            raise Veto

    async def broken(message: Message) -> Grant:
        return Broken()

    async with in_memory(DONE) as (_, agent):
        grants: list[CountedGrant] = []
        for hook in (granting(grants), broken, granting(grants)):
            agent.on_before_message(hook)
        with pytest.raises(Veto):
            await run(agent)
    assert settled(grants) == [[Usage(1, 10, 5)]] * 2


@pytest.mark.parametrize(
    ("effect", "usage"),
    [(Overloaded(), Usage(1, 0, 0)), (CloseBeforeHead(), None), (ResetMidStream(after_chunks=None), None)],
)
async def test_a_failed_call_is_settled_with_what_is_known(effect: Any, usage: Usage | None) -> None:
    async with connected(quick(effect)) as (_, agent):
        grants: list[CountedGrant] = []
        agent.on_before_message(granting(grants))
        with pytest.raises(UpstreamError):
            await run(agent)
    assert settled(grants) == [[usage]]


async def test_a_stream_that_is_left_early_is_settled_with_what_came() -> None:
    slow = Latency(ttft_base_s=0, prefill_tps=None, decode_tps=200, jitter=0)
    async with connected(quick(latency=slow, reply_tokens=5000), max_tokens=5000) as (claude, agent):
        grants: list[CountedGrant] = []
        agent.on_before_message(granting(grants))
        session = await agent.new_session("acme")
        async with agent.stream(session.id, "hello") as stream:
            text = await anext(stream)
        ((usage,),) = settled(grants)
        assert usage is not None
        assert usage.input_tokens == claude.requests[0].input_tokens
        assert usage.output_tokens >= len(text) / 4


@pytest.mark.parametrize("veto_after", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_whenever_a_run_is_cancelled_every_grant_is_settled_once(streamed: bool, veto_after: bool) -> None:
    """Cancel after the n-th step of the loop, for every n until the run ends by itself."""

    async def explore(steps: int) -> bool:
        async with in_memory(LOOK, DONE, tools=[tool()]) as (claude, agent):
            grants: list[CountedGrant] = []
            agent.on_before_message(granting(grants))
            agent.on_before_message(granting(grants, suspend=True))
            agent.on_tool_call(granting(grants, suspend=True))
            if veto_after:
                agent.on_after_message(vetoing)
            session = await agent.new_session("acme")

            async def work() -> None:
                async with agent.stream(session.id, "look") as stream:
                    async for _ in stream:
                        await asyncio.sleep(0)

            whole = work() if streamed else agent.run(session.id, "look")
            task = asyncio.get_running_loop().create_task(whole)
            for _ in range(steps):
                await asyncio.sleep(0)
            cancelled = task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert [len(grant.settled) for grant in grants] == [1] * len(grants)
            # Two grants for each message, one for the tool between them. What was sent is not given back, and
            # at most the message whose call had begun, but had not reached the wire, is charged beside that.
            charged = len([usages for usages in settled(grants) if usages != [Usage(0, 0, 0)]])
            sent = len(claude.arrivals)
            assert charged - 2 * sent in ((0, 2), (0, 1, 2, 3), (1,))[sent]
            async with agent.sessions.turn(session.id) as turn:
                assert len(turn.history) in ((0,) if task.cancelled() or veto_after else (4,))
            return not cancelled

    for steps in range(1000):
        if run_virtual(explore(steps)):
            assert steps > 10
            return
    raise AssertionError("the run never ended")


def test_texts_stay_out_of_every_repr() -> None:
    async def main() -> None:
        seen: list[object] = []
        async with in_memory(
            ["Wait.", {"name": "look", "input": {"x": SECRET}}], [SECRET], tools=[tool()]
        ) as (_, agent):

            async def note(*subjects: Any) -> None:
                seen.extend(subjects)

            agent.on_before_message(note)
            agent.on_after_message(note)
            agent.on_tool_call(note)
            session = await agent.new_session("acme", metadata={"note": SECRET})
            stream = agent.stream(session.id, SECRET)
            async with stream:
                async for _ in stream:
                    pass
            seen.extend([stream, stream.reply, agent, *agent._setup.tools.values()])
        assert {type(subject) for subject in seen} >= {Message, Reply, ToolCall, Agent}
        assert SECRET not in repr(seen)

    run_virtual(main())
