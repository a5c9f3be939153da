"""Answers: plain, streamed, scripted, and always the same for the same request."""

import asyncio
from typing import Any

import pytest

from scheduler.testing import ClaudeConfig, Latency, Script, SimulatedClaude, ToolCall
from tests.testing.claude_client import (
    MODEL,
    asked,
    call,
    collect,
    connection,
    create,
    quick,
    request_bytes,
    sdk,
    text_of,
)

TOOLS: list[dict[str, Any]] = [{"name": "weather", "input_schema": {"type": "object"}}]


async def raw_events(claude: SimulatedClaude, **fields: Any) -> list[str]:
    """The names of the events of a stream as they are on the wire."""
    async with connection(claude) as (reader, writer):
        writer.write(request_bytes("/v1/messages", asked(stream=True, **fields)))
        data = await reader.readuntil(b"0\r\n\r\n")
    return [
        line.partition(b"event: ")[2].decode() for line in data.splitlines() if line.startswith(b"event: ")
    ]


async def test_the_events_come_in_the_order_of_the_api() -> None:
    config = quick(
        latency=Latency(
            ttft_base_s=0, prefill_tps=None, decode_tps=None, chunk_tokens_min=4, chunk_tokens_max=4
        )
    )
    async with SimulatedClaude(config) as claude:
        names = await raw_events(claude)
    assert names == [
        "message_start", "content_block_start", "ping", *["content_block_delta"] * 3, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip


async def test_usage_comes_with_the_first_and_the_last_event() -> None:
    async with SimulatedClaude(quick()) as claude, sdk(claude) as client:
        events = await collect(client)
    start, delta = events[0], events[-2]
    assert (start.type, start.message.usage.input_tokens, start.message.stop_reason) == (
        "message_start",
        9,
        None,
    )
    assert start.message.content == []
    assert (delta.type, delta.usage.output_tokens, delta.delta.stop_reason) == (
        "message_delta",
        12,
        "end_turn",
    )


async def test_a_stream_says_what_the_plain_answer_says() -> None:
    async with SimulatedClaude(quick()) as claude, sdk(claude) as client:
        plain = await create(client, "the same question")
        async with client.messages.stream(**asked("the same question")) as stream:
            streamed = await stream.get_final_message()
            assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert stream.request_id == claude.requests[1].request_id
    assert text_of(plain) == text_of(streamed)
    assert plain.usage.output_tokens == streamed.usage.output_tokens == 12
    assert plain.id != streamed.id


async def test_equal_requests_and_seeds_get_equal_texts_and_others_do_not() -> None:
    texts = []
    for seed in (1, 1, 2):
        async with SimulatedClaude(quick(reply_tokens=None), seed=seed) as claude, sdk(claude) as client:
            texts += [
                text_of(await create(client, prompt, max_tokens=1000)) for prompt in ("one", "one", "two")
            ]
    one, again, two, *others = texts
    assert one == again == others[0] == others[1]
    assert len({one, two, others[3], others[5]}) == 4


async def test_a_run_repeats_exactly_with_its_seed() -> None:
    runs = []
    for _ in range(2):
        async with SimulatedClaude(quick(), seed=7) as claude, sdk(claude) as client:
            first, second = await create(client), await create(client)
            runs.append([first.id, second.id, *(attempt.request_id for attempt in claude.requests)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 4


async def test_max_tokens_cuts_the_same_text_shorter() -> None:
    async with SimulatedClaude(quick()) as claude, sdk(claude) as client:
        whole = await create(client, max_tokens=12)
        cut = await create(client, max_tokens=5)
    assert (whole.stop_reason, whole.usage.output_tokens) == ("end_turn", 12)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 5)
    assert text_of(whole).startswith(text_of(cut) + " ")


async def test_no_more_is_generated_than_may_be_sent() -> None:
    lengths = (6, 12, 10**9, 10**15)
    texts = []
    for length in lengths:
        async with SimulatedClaude(quick(reply_tokens=length)) as claude, sdk(claude) as client:
            cut = await create(client, max_tokens=6)
            texts.append((text_of(cut), cut.stop_reason))
    whole, *cut_short = texts
    assert whole[1] == "end_turn"
    assert cut_short == [(whole[0], "max_tokens")] * 3


async def test_a_stop_sequence_ends_the_text() -> None:
    script = Script(text="one two STOP three")
    async with SimulatedClaude(quick(scripts=(script,))) as claude, sdk(claude) as client:
        message = await create(client, stop_sequences=["unheard", "STOP"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "STOP")
    assert text_of(message) == "one two "


async def test_drawn_lengths_are_spread_around_the_median() -> None:
    async with (
        SimulatedClaude(quick(reply_tokens=None, reply_tokens_median=40)) as claude,
        sdk(claude) as client,
    ):
        lengths = [(await create(client, str(n), max_tokens=9999)).usage.output_tokens for n in range(60)]
    assert len(set(lengths)) > 20
    assert 25 < sorted(lengths)[30] < 60


async def test_an_echo_tells_which_answer_belongs_to_which_prompt() -> None:
    async with (
        SimulatedClaude(quick(scripts=(Script(text="you said: ", echo=True),))) as claude,
        sdk(claude) as client,
    ):
        answers = await asyncio.gather(*(create(client, f"prompt {n}") for n in range(20)))
    assert [text_of(answer) for answer in answers] == [f"you said: prompt {n}" for n in range(20)]


async def test_the_first_script_that_fits_answers_until_it_is_used_up() -> None:
    scripts = (
        Script(contains="weather", model="claude-sonnet-5", text="other model"),
        Script(contains="weather", times=1, text="first"),
        Script(contains="weather", text="then"),
    )
    async with SimulatedClaude(quick(scripts=scripts)) as claude, sdk(claude) as client:
        texts = [text_of(await create(client, "how is the weather?")) for _ in range(3)]
        other = text_of(await create(client, "how is the weather?", model="claude-sonnet-5"))
        unscripted = await create(client, "hello")
    assert (texts, other) == (["first", "then", "then"], "other model")
    assert unscripted.usage.output_tokens == 12


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_can_be_led_through_a_tool_call(stream: bool) -> None:
    scripts = (
        Script(has_tool_result=True, text="It is: ", echo=True),
        Script(
            contains="weather",
            text="Let me look.",
            tools=(ToolCall(name="weather", input={"city": "Oslo", "days": 2}),),
        ),
    )
    async with SimulatedClaude(quick(scripts=scripts)) as claude, sdk(claude) as client:

        async def ask(messages: list[Any]) -> Any:
            arguments = asked(messages=messages, tools=TOOLS)
            if not stream:
                return await client.messages.create(**arguments)
            async with client.messages.stream(**arguments) as opened:
                return await opened.get_final_message()

        question = {"role": "user", "content": "how is the weather in Oslo?"}
        first = await ask([question])
        text, call = first.content
        result = {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": [{"type": "text", "text": "snow"}],
        }
        turn = {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}],
        }
        second = await ask([question, turn, {"role": "user", "content": [result]}])
    assert (text.text, first.stop_reason) == ("Let me look.", "tool_use")
    assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "Oslo", "days": 2})
    assert call.id.startswith("toolu_")
    assert (text_of(second), second.stop_reason) == ("It is: snow", "end_turn")


async def test_a_tool_call_without_text_and_with_its_own_id_and_reason() -> None:
    script = Script(
        tools=(ToolCall(name="a", id="toolu_1"), ToolCall(name="b", input={"x": "ü" * 30})),
        stop_reason="pause_turn",
    )
    async with (
        SimulatedClaude(quick(scripts=(script,))) as claude,
        sdk(claude) as client,
        client.messages.stream(**asked()) as stream,
    ):
        message = await stream.get_final_message()
    assert [(block.name, block.input) for block in message.content] == [("a", {}), ("b", {"x": "ü" * 30})]  # type: ignore[union-attr]
    assert message.content[0].id == "toolu_1"  # type: ignore[union-attr]
    assert message.stop_reason == "pause_turn"


async def test_a_slow_stream_has_pings_between_its_events() -> None:
    latency = Latency(
        ttft_base_s=0, jitter=0, prefill_tps=None, decode_tps=1, ping_every_s=3, chunk_tokens_max=1
    )
    async with SimulatedClaude(quick(latency=latency, time_scale=0.005)) as claude:
        names = await raw_events(claude)
    # Twelve tokens take twelve seconds: a ping each three, and the one behind the first block's start.
    assert 3 <= names.count("ping") <= 5
    assert names.count("content_block_delta") == 12


async def test_pings_come_while_a_token_is_awaited() -> None:
    latency = Latency(ttft_base_s=0, jitter=0, prefill_tps=None, decode_tps=0.02, ping_every_s=15)
    async with SimulatedClaude(quick(latency=latency, reply_tokens=2, time_scale=0.004)) as claude:
        names = await raw_events(claude)
    # A token takes fifty seconds: in each of them the answer says three times that it is still there.
    assert names[2:5] == ["ping"] * 3
    assert names.count("ping") >= 1 + 3


async def test_an_empty_reply_has_one_token() -> None:
    async with (
        SimulatedClaude(quick(scripts=(Script(contains="quiet", echo=True),))) as claude,
        sdk(claude) as client,
    ):
        blank = await call(claude, "/v1/messages", asked("quiet", stop_sequences=["quiet"]))
        events = await collect(
            client, messages=[{"role": "user", "content": "quiet"}], stop_sequences=["quiet"]
        )
        charged = [attempt.output_tokens for attempt in claude.requests]
    assert blank.json()["content"] == [{"type": "text", "text": ""}]
    assert blank.json()["usage"]["output_tokens"] == 1
    assert [event.type for event in events][-1] == "message_stop"
    assert charged == [1, 1]


async def test_the_default_configuration_is_that_of_a_real_model() -> None:
    config = ClaudeConfig()
    assert (config.latency.ttft_base_s, config.latency.prefill_tps, config.latency.decode_tps) == (
        0.4,
        10_000,
        80,
    )
    assert (config.latency.jitter, config.latency.capacity, config.time_scale) == (0.25, None, 1.0)
    assert (
        config.latency.chunk_tokens_min,
        config.latency.chunk_tokens_max,
        config.latency.ping_every_s,
    ) == (1, 4, 15)
    assert MODEL in config.models
