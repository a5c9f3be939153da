"""Tools: called with what the model asked for; whatever they do, the model gets an answer."""

import asyncio
from typing import Any

import pytest

from agent import Message, Reply, Tool, ToolCall, ToolError
from scheduler.testing import Script
from scheduler.testing import ToolCall as ScriptedCall
from tests.agent.claudes import DONE, connected, in_memory, quick, sent, tool


def asking(*calls: ScriptedCall) -> Script:
    return Script(has_tool_result=False, text="Wait.", tools=calls)


async def results_of(*calls: ScriptedCall, tools: list[Tool]) -> list[dict[str, Any]]:
    """What the model is told after it asked for some calls."""
    async with connected(quick(scripts=(asking(*calls), DONE)), tools=tools) as (claude, agent):
        session = await agent.new_session("acme")
        reply = await agent.run(session.id, "go")
        assert (reply.text, reply.turns, len(claude.requests)) == ("Seen.", 2, 2)
        assert reply.usage.requests == 2
        assert reply.usage.input_tokens == sum(attempt.input_tokens for attempt in claude.requests)
    assert [message["role"] for message in sent(claude, 1)["messages"]] == ["user", "assistant", "user"]
    assert [definition["name"] for definition in sent(claude, 1)["tools"]] == [t.name for t in tools]
    results: list[dict[str, Any]] = sent(claude, 1)["messages"][-1]["content"]
    return results


async def test_several_calls_of_one_message_are_answered_in_order() -> None:
    async def add(one: int, two: int) -> int:
        return one + two

    async def fail() -> None:
        raise KeyError("secret")

    async def explain() -> None:
        raise ToolError("there is no such city")

    calls = [
        ScriptedCall(name="add", input={"one": 1, "two": 2}, id="toolu_1"),
        ScriptedCall(name="fail", id="toolu_2"),
        ScriptedCall(name="explain", id="toolu_3"),
        ScriptedCall(name="unknown", id="toolu_4"),
        ScriptedCall(name="add", input={"three": 3}, id="toolu_5"),
    ]
    tools = [tool("add", add), tool("fail", fail), tool("explain", explain)]
    results = await results_of(*calls, tools=tools)
    assert [(r["tool_use_id"], r["content"], r.get("is_error", False)) for r in results] == [
        ("toolu_1", "3", False),
        ("toolu_2", "the tool failed: KeyError", True),
        ("toolu_3", "there is no such city", True),
        ("toolu_4", "there is no tool 'unknown'", True),
        ("toolu_5", "the tool failed: TypeError", True),
    ]


@pytest.mark.parametrize(
    ("returned", "content"),
    [
        ("text", "text"),
        (None, ""),
        ({"a": 1}, '{"a": 1}'),
        ([1, 2], "[1, 2]"),
        ([], "[]"),
        ([{"type": "text", "text": "x"}], [{"type": "text", "text": "x"}]),
    ],
)
async def test_what_a_tool_returns_is_what_the_model_reads(returned: Any, content: Any) -> None:
    async def function() -> Any:
        return returned

    (result,) = await results_of(ScriptedCall(name="look"), tools=[tool("look", function)])
    assert result["content"] == content


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (object(), "TypeError"),
        ("half a pair: \ud83d", "UnicodeEncodeError"),
        ([{"type": "text", "text": "half a pair: \udcff"}], "UnicodeEncodeError"),
        ([{"type": "text", "text": {1, 2}}], "TypeError"),
        ([{"type": "text", "text": "x", "more": float("nan")}], "ValueError"),
    ],
)
async def test_what_cannot_be_sent_is_a_failure(returned: Any, why: str) -> None:
    async def function() -> Any:
        return returned

    (result,) = await results_of(ScriptedCall(name="look"), tools=[tool("look", function)])
    assert (result["content"], result["is_error"]) == (f"the tool failed: {why}", True)


async def test_an_explanation_can_always_be_sent() -> None:
    async def function() -> None:
        raise ToolError("no file \udcff")

    (result,) = await results_of(ScriptedCall(name="look"), tools=[tool("look", function)])
    assert result["content"] == "no file ?"


async def test_what_was_said_cannot_be_changed_by_the_tool_or_a_hook_that_keeps_it() -> None:
    view = [{"type": "text", "text": "a view"}]
    seen: list[Any] = []

    async def function() -> Any:
        return view

    async with in_memory([{"name": "look"}], ["Seen."], tools=[tool("look", function)]) as (_, agent):

        @agent.on_before_message
        async def keep(message: Message) -> None:
            seen.append(message.prompt)

        session = await agent.new_session("acme")
        await agent.run(session.id, [{"type": "text", "text": "go"}])
        view[0]["text"] = "changed"
        seen[0][0]["text"] = "changed"
        seen[1][0]["content"][0]["text"] = "changed"
        async with agent.sessions.turn(session.id) as turn:
            said, _, told, _ = [entry["content"] for entry in turn.history]
    assert said == [{"type": "text", "text": "go"}]
    assert told[0]["content"] == [{"type": "text", "text": "a view"}]


async def test_a_tool_whose_own_task_was_cancelled_has_failed_and_nothing_else_has() -> None:
    async def function() -> None:
        inner = asyncio.create_task(asyncio.sleep(60))
        inner.cancel()
        await inner

    (result,) = await results_of(ScriptedCall(name="look"), tools=[tool("look", function)])
    assert (result["content"], result["is_error"]) == ("the tool failed: CancelledError", True)


async def test_a_run_that_is_cancelled_while_a_tool_works_is_cancelled() -> None:
    begun = asyncio.Event()

    async def function() -> None:
        begun.set()
        await asyncio.sleep(60)

    async with in_memory([{"name": "look"}], ["Seen."], tools=[tool("look", function)]) as (claude, agent):
        session = await agent.new_session("acme")
        task = asyncio.create_task(agent.run(session.id, "go"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(claude.arrivals) == 1


class Callable:
    async def __call__(self) -> str:
        return "called"


async def test_an_object_with_an_async_call_is_a_tool() -> None:
    (result,) = await results_of(ScriptedCall(name="look"), tools=[tool("look", Callable())])
    assert result["content"] == "called"


async def test_hooks_see_every_message_and_every_call() -> None:
    seen: list[Any] = []
    async with in_memory(["Wait.", {"name": "look", "input": {"at": 1}}], ["Seen."], tools=[tool()]) as (
        _,
        agent,
    ):

        @agent.on_before_message
        async def before(message: Message) -> None:
            seen.append(("before", message.turn, message.prompt))

        @agent.on_tool_call
        async def called(call: ToolCall) -> None:
            seen.append((call.name, call.turn, call.input))

        @agent.on_after_message
        async def after(message: Message, reply: Reply) -> None:
            seen.append(("after", message.turn, reply.text, reply.usage.requests))

        session = await agent.new_session("acme", user="u", metadata={"plan": "free"})
        await agent.run(session.id, "go")
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "a view"}
    assert seen == [
        ("before", 1, "go"), ("after", 1, "Wait.", 1), ("look", 1, {"at": 1}),
        ("before", 2, [result]), ("after", 2, "Seen.", 1),
    ]  # fmt: skip


def sync() -> str:
    return ""


@pytest.mark.parametrize(
    ("fields", "error", "name"),
    [
        ({"name": "two words"}, ValueError, "name"),
        ({"name": 1}, TypeError, "name"),
        ({"description": None}, TypeError, "description"),
        ({"input_schema": {"type": "string"}}, ValueError, "input_schema"),
        ({"input_schema": None}, TypeError, "input_schema"),
        ({"function": sync}, TypeError, "function"),
        ({"function": None}, TypeError, "function"),
    ],
)
def test_a_tool_is_checked_when_it_is_made(fields: Any, error: type[Exception], name: str) -> None:
    good = {"name": "look", "description": "", "input_schema": {"type": "object"}, "function": Callable()}
    Tool(**good)  # type: ignore[arg-type]
    with pytest.raises(error, match=f"^{name}: "):
        Tool(**{**good, **fields})
