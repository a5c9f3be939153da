"""Runs and streams: what the model is sent, what the caller gets, what stays in the session."""

import asyncio
import logging
import traceback
from typing import Any

import pytest
from anthropic import AsyncAnthropic

from agent import Agent, Message, TooManyTurns
from agent.run import remembered, wanted_tools
from scheduler import UpstreamError, Usage
from scheduler.testing import Fault, Latency, Script, ToolCall
from scheduler.testing.claude.damage import MalformedJson, ResetMidStream, Truncate
from scheduler.testing.claude.effects import Effect, ErrorStatus, Overloaded, RateLimited
from scheduler.upstreams.claude import Message as ClaudeMessage
from tests.agent.claudes import MODEL, SECRET, connected, in_memory, make_agent, quick, sent, tool, until

SLOW = Latency(ttft_base_s=0, prefill_tps=None, decode_tps=200, jitter=0)


async def history(agent: Agent, session_id: str) -> list[dict[str, Any]]:
    async with agent.sessions.turn(session_id) as turn:
        return list(turn.history)


async def test_a_run_returns_the_reply() -> None:
    async with connected(quick(scripts=(Script(text="Good day."),))) as (claude, agent):
        session = await agent.new_session("acme")
        reply = await agent.run(session.id, "hello")
    assert (reply.text, reply.model, reply.turns, reply.session_id) == ("Good day.", MODEL, 1, session.id)
    assert reply.message.stop_reason == "end_turn"
    assert reply.usage == Usage(1, claude.requests[0].input_tokens, claude.requests[0].output_tokens)
    assert claude.requests[0].stream


async def test_a_conversation_is_sent_as_it_went() -> None:
    async with connected(system="Be brief.", max_tokens=77) as (claude, agent):
        session = await agent.new_session("acme", user="u-1")
        first = await agent.run(session.id, "one")
        await agent.run(session.id, [{"type": "text", "text": "two"}])
    body = sent(claude, 1)
    assert (body["system"], body["max_tokens"], body["metadata"]) == ("Be brief.", 77, {"user_id": "u-1"})
    assert body["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [{"type": "text", "text": first.text}]},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
    ]


async def test_a_stream_is_the_text_of_the_reply() -> None:
    async with connected() as (_, agent):
        session = await agent.new_session("acme")
        async with agent.stream(session.id, "hello", tenant="acme") as stream:
            with pytest.raises(RuntimeError, match="not ended"):
                _ = stream.reply
            texts = [text async for text in stream]
        assert len(texts) > 1
        assert "".join(texts) == stream.reply.text
        assert len(await history(agent, session.id)) == 2


async def test_the_text_comes_while_the_model_speaks() -> None:
    async with connected(quick(latency=SLOW, reply_tokens=40)) as (claude, agent):
        session = await agent.new_session("acme")
        async with agent.stream(session.id, "hello") as stream:
            await anext(stream)
            assert claude.requests[0].end_ns is None


async def test_leaving_a_stream_ends_the_upstreams_work_and_forgets_the_turn() -> None:
    async with connected(quick(latency=SLOW, reply_tokens=5000), max_tokens=5000) as (claude, agent):
        session = await agent.new_session("acme")
        async with agent.stream(session.id, "hello") as stream:
            async for _ in stream:
                break
        await until(lambda: claude.requests[0].end_ns is not None)
        assert claude.requests[0].cancelled
        assert await history(agent, session.id) == []


async def test_a_stream_that_is_dropped_ends_too() -> None:
    async with connected(quick(latency=SLOW, reply_tokens=5000), max_tokens=5000) as (claude, agent):
        session = await agent.new_session("acme")
        async for _ in agent.stream(session.id, "hello"):
            break
        await until(lambda: claude.requests[0].end_ns is not None)
        assert claude.requests[0].cancelled
        assert await history(agent, session.id) == []


async def test_a_long_reply_is_not_refused_by_the_sdk() -> None:
    async with connected(quick(reply_tokens=3000), max_tokens=64_000) as (_, agent):
        session = await agent.new_session("acme")
        assert (await agent.run(session.id, "hello")).usage.output_tokens == 3000


@pytest.mark.parametrize(
    ("effect", "kind"),
    [
        (Overloaded(), "overloaded"),
        (RateLimited(retry_after=1), "rate_limited"),
        (ErrorStatus(status=500), "server_error"),
        (ErrorStatus(status=400), "bad_request"),
        (ResetMidStream(after_chunks=1), "broken_stream"),
        (Truncate(after_chunks=1), "truncated_stream"),
        (MalformedJson(after_chunks=1), "malformed"),
    ],
)
async def test_a_failed_run_is_one_request_one_exception_and_no_change(
    effect: Effect, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected() as (claude, agent):
        session = await agent.new_session("acme")
        await agent.run(session.id, "before")
        before = await history(agent, session.id)
        claude.add_faults(Fault(effect, times=1))
        with caplog.at_level(logging.INFO), pytest.raises(UpstreamError) as caught:
            await agent.run(session.id, SECRET)
        assert (caught.value.kind, len(claude.requests)) == (kind, 2)
        assert await history(agent, session.id) == before
        await agent.run(session.id, "after")
        assert len(await history(agent, session.id)) == 4
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text


async def test_the_clients_own_retries_are_off_and_the_client_is_left_as_it_was() -> None:
    async with connected(quick(ErrorStatus(status=529, should_retry=True))) as (claude, _):
        async with AsyncAnthropic(api_key="sk-test", base_url=claude.base_url) as client:
            assert client.max_retries == 2
            agent = make_agent(client)
            session = await agent.new_session("acme")
            with pytest.raises(UpstreamError):
                await agent.run(session.id, "hello")
            assert client.max_retries == 2
        assert [attempt.retry_count for attempt in claude.requests] == [0]


async def test_cut_tool_calls_and_empty_answers_do_not_stay() -> None:
    call = ToolCall(name="look")
    cut = Script(contains="cut", text="half", tools=(call,), stop_reason="max_tokens")
    only = Script(contains="only", tools=(call,), stop_reason="max_tokens")
    async with connected(quick(scripts=(cut, only)), tools=[tool()]) as (_, agent):
        session = await agent.new_session("acme")
        assert (await agent.run(session.id, "cut")).turns == 1
        await agent.run(session.id, "only")
        assert await history(agent, session.id) == [
            {"role": "user", "content": "cut"},
            {"role": "assistant", "content": [{"type": "text", "text": "half"}]},
            {"role": "user", "content": "only"},
        ]


TEXT = {"type": "text", "text": "Good."}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
REDACTED = {"type": "redacted_thinking", "data": "d"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}


@pytest.mark.parametrize(
    ("stop", "said", "kept"),
    [
        ("end_turn", [{"type": "text", "text": " \n"}], []),
        ("end_turn", [THOUGHT, TEXT], [THOUGHT, TEXT]),
        ("end_turn", [TEXT, {"type": "text", "text": "\n\n"}, THOUGHT, REDACTED], [TEXT]),
        ("tool_use", [THOUGHT, CALL], [THOUGHT, CALL]),
        ("max_tokens", [THOUGHT, CALL], []),
        ("max_tokens", [REDACTED, THOUGHT], []),
        ("max_tokens", [THOUGHT, TEXT, THOUGHT, CALL], [THOUGHT, TEXT]),
    ],
)
def test_what_the_upstream_would_not_read_again_does_not_stay(stop: str, said: Any, kept: Any) -> None:
    fields: Any = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "usage": {}}
    message = ClaudeMessage.construct(**fields, content=said, stop_reason=stop)
    entries = remembered(message, wanted_tools(message))
    assert entries == ([{"role": "assistant", "content": kept}] if kept else [])


async def test_a_conversation_goes_on_after_an_answer_of_white_space() -> None:
    async with in_memory(["\n\n"]) as (_, agent):
        session = await agent.new_session("acme")
        assert (await agent.run(session.id, "hello")).text == "\n\n"
        assert await history(agent, session.id) == [{"role": "user", "content": "hello"}]


async def test_a_refused_prompt_does_not_stay() -> None:
    async with connected(quick(scripts=(Script(text="No.", stop_reason="refusal"),))) as (_, agent):
        session = await agent.new_session("acme")
        assert (await agent.run(session.id, "hello")).message.stop_reason == "refusal"
        assert await history(agent, session.id) == []


async def test_a_prompt_cannot_be_changed_after_it_was_sent() -> None:
    async with connected() as (_, agent):
        session = await agent.new_session("acme")
        prompt = [{"type": "text", "text": "one"}]
        await agent.run(session.id, prompt)
        prompt[0]["text"] = "changed"
        assert (await history(agent, session.id))[0]["content"] == [{"type": "text", "text": "one"}]


async def test_headers_of_a_message_go_along() -> None:
    def headers(message: Message) -> dict[str, str]:
        return {"x-waitline-tenant": message.tenant}

    async with connected(headers=headers) as (claude, agent):
        session = await agent.new_session("acme")
        await agent.run(session.id, "hello")
    assert claude.requests[0].tenant == "acme"


async def test_runs_of_one_session_follow_one_another_and_others_do_not_wait() -> None:
    async with in_memory() as (_, agent):
        one, other = await agent.new_session("acme"), await agent.new_session("acme")
        begun: list[str] = []
        release = asyncio.Event()

        @agent.on_before_message
        async def hold(message: Message) -> None:
            begun.append(str(message.prompt))
            if message.prompt == "first":
                await release.wait()

        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(agent.run(one.id, prompt)) for prompt in ("first", "second", "third")]
            await group.create_task(agent.run(other.id, "elsewhere"))
            assert begun == ["first", "elsewhere"]
            runs[1].cancel()
            release.set()
        assert begun == ["first", "elsewhere", "third"]
        assert [entry["content"] for entry in await history(agent, one.id)][::2] == ["first", "third"]


async def test_too_many_turns() -> None:
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1

    async with in_memory([{"name": "look"}], tools=[tool("look", look)], max_turns=3) as (claude, agent):
        session = await agent.new_session("acme")
        with pytest.raises(TooManyTurns, match="after 3 messages"):
            await agent.run(session.id, "look")
        # The last call would have had no message left to report to.
        assert (len(claude.arrivals), looks) == (3, 2)
        assert await history(agent, session.id) == []


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"model": ""}, ValueError, "model"),
        ({"model": None}, TypeError, "model"),
        ({"max_tokens": 0}, ValueError, "max_tokens"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens"),
        ({"max_turns": 0}, ValueError, "max_turns"),
        ({"call_timeout": 0}, ValueError, "call_timeout"),
        ({"call_timeout": "5"}, TypeError, "call_timeout"),
        ({"tools": ["look"]}, TypeError, "tools"),
        ({"tools": [tool(), tool()]}, ValueError, "tools"),
    ],
)
async def test_bad_arguments_are_named(options: Any, error: type[Exception], name: str) -> None:
    async with AsyncAnthropic(api_key="sk-test") as client:
        with pytest.raises(error, match=f"^{name}: "):
            make_agent(client, **options)


async def test_a_prompt_must_be_text_or_blocks() -> None:
    async with in_memory() as (_, agent):
        session = await agent.new_session("acme")
        with pytest.raises(TypeError, match=r"^prompt: "):
            await agent.run(session.id, {"text": SECRET})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "prompt", ["", [], f"{SECRET} \ud83d", [{"type": "text", "text": f"{SECRET} \ud83d"}], [{"x": object()}]]
)
async def test_a_prompt_that_cannot_be_sent_is_refused_and_not_shown(prompt: Any) -> None:
    async with in_memory() as (claude, agent):
        session = await agent.new_session("acme")
        with pytest.raises((TypeError, ValueError), match=r"^prompt: ") as caught:
            await agent.run(session.id, prompt)
        assert not isinstance(caught.value, UnicodeError)
        assert caught.value.__context__ is None
        assert claude.arrivals == []
        assert await history(agent, session.id) == []
