"""Tokens of a request, and the prompt cache."""

from typing import Any

import pytest

from scheduler.testing import Limits, SimulatedClaude
from scheduler.testing.claude.prompt import PromptCache, measure
from tests.testing.claude_client import asked, create, quick, sdk

SECOND_NS = 1_000_000_000


def tokens(**body: Any) -> int:
    return measure({"messages": [], **body}, 0).tokens


def said(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def test_text_is_four_bytes_a_token_rounded_up_once() -> None:
    assert tokens(messages=said("")) == 4 + 3
    assert tokens(messages=said("x" * 4)) == 1 + 4 + 3
    assert tokens(messages=said("x" * 5)) == 2 + 4 + 3
    assert tokens(messages=said("ä" * 5)) == 3 + 4 + 3
    assert tokens(messages=[*said("xx"), *said("xx")]) == 1 + 8 + 3
    assert (
        tokens(messages=said([{"type": "text", "text": "xx"}, {"type": "text", "text": "xx"}])) == 1 + 4 + 3
    )


def test_system_tools_images_and_tool_results_count() -> None:
    assert tokens(system="x" * 8, messages=said("")) == 2 + 4 + 3
    assert tokens(system=[{"type": "text", "text": "x" * 8}], messages=said("")) == 2 + 4 + 3
    assert tokens(tools=[{"name": "ab"}], messages=said("")) == len('{"name":"ab"}') // 4 + 1 + 4 + 3
    assert tokens(messages=said([{"type": "image", "source": {"data": "A" * 9999}}])) == 1_600 + 4 + 3
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x" * 8}]}
    assert tokens(messages=said([result])) == 2 + 4 + 3


@pytest.mark.parametrize(
    "content", [5, None, [5, None], [{"type": 7}], [{"type": "text", "text": 5}], "\ud800"]
)
def test_any_shape_can_be_weighed(content: Any) -> None:
    assert tokens(messages=said(content), system=5, tools="x") >= 7


def test_the_digest_tells_apart_what_is_asked_and_not_how() -> None:
    base = {"model": "m", "messages": said("hi"), "max_tokens": 5}
    digest = measure(base, 0).digest
    assert measure({**base, "stream": True, "max_tokens": 9}, 0).digest == digest
    others = (
        {**base, "messages": said("ho")},
        {**base, "model": "n"},
        {**base, "system": "s"},
        {**base, "tools": [{}]},
    )
    assert len({digest, measure(base, 1).digest, *(measure(other, 0).digest for other in others)}) == 6


def test_the_last_user_message_is_what_scripts_look_at() -> None:
    result = {"type": "tool_result", "content": [{"type": "text", "text": "snow"}]}
    first = measure({"messages": [*said("one"), *said("two"), {"role": "assistant", "content": "three"}]}, 0)
    second = measure({"messages": said([result, {"type": "text", "text": "so?"}])}, 0)
    assert (first.last_text, first.has_tool_result) == ("two", False)
    assert (second.last_text, second.has_tool_result) == ("snow so?", True)


def cached(text: str, **control: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral", **control}}


def test_a_prefix_is_written_once_and_read_until_it_expires() -> None:
    prompt = measure({"system": [cached("s" * 400)], "messages": said("x" * 40)}, 0)
    cache = PromptCache(10)
    first, second = cache.use("key", "m", prompt, 0), cache.use("key", "m", prompt, 300 * SECOND_NS)
    assert (first.fresh, first.written, first.read) == (10 + 4 + 3, 100, 0)
    assert (second.fresh, second.written, second.read) == (10 + 4 + 3, 0, 100)
    # Every use keeps it for another 300 seconds.
    assert cache.use("key", "m", prompt, 600 * SECOND_NS).read == 100
    assert cache.use("key", "m", prompt, 900 * SECOND_NS + 1).read == 0
    assert cache.use("another", "m", prompt, 900 * SECOND_NS + 2).read == 0
    assert cache.use("key", "n", prompt, 900 * SECOND_NS + 2).read == 0


def test_the_longest_known_prefix_is_read_and_the_rest_is_written() -> None:
    cache = PromptCache(10)
    short = measure({"system": [cached("s" * 400)], "messages": said("x")}, 0)
    longer = measure(
        {"system": [cached("s" * 400)], "messages": said([cached("x" * 200), {"type": "text", "text": "y"}])},
        0,
    )
    cache.use("key", "m", short, 0)
    use = cache.use("key", "m", longer, 1)
    assert (use.read, use.written) == (100, 50 + 4)
    assert use.fresh + use.written + use.read == longer.tokens


def test_a_prefix_can_be_kept_for_an_hour_and_the_cache_is_bounded() -> None:
    cache = PromptCache(2)
    prompts = [
        measure({"system": [cached(str(n) * 400, ttl="1h")], "messages": said("x")}, 0) for n in range(3)
    ]
    for prompt in prompts:
        cache.use("key", "m", prompt, 0)
    assert [cache.use("key", "m", prompt, 3_600 * SECOND_NS).read for prompt in reversed(prompts)] == [
        100,
        100,
        0,
    ]


async def test_cached_input_costs_no_input_tokens() -> None:
    system: Any = [cached("s" * 4 * 1_000)]
    async with (
        SimulatedClaude(quick(limits=Limits(input_tokens_per_minute=2_100))) as claude,
        sdk(claude) as client,
    ):
        usages = [(await create(client, "hi", system=system)).usage for _ in range(3)]
        assert claude.stats().cache_creation_input_tokens == 1_000
        assert claude.stats().cache_read_input_tokens == 2_000
    assert [usage.cache_creation_input_tokens for usage in usages] == [1_000, 0, 0]
    assert [usage.cache_read_input_tokens for usage in usages] == [0, 1_000, 1_000]
    assert {usage.input_tokens for usage in usages} == {8}


async def test_counted_tokens_include_the_cached_ones() -> None:
    async with SimulatedClaude(quick()) as claude, sdk(claude) as client:
        arguments: Any = {key: value for key, value in asked("hi").items() if key != "max_tokens"}
        counted = await client.messages.count_tokens(**arguments, system=[cached("s" * 400)])  # type: ignore[list-item]
    assert counted.input_tokens == 100 + 1 + 4 + 3
