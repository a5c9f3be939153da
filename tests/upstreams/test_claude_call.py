"""One call: text, message, usage known so far, and what the upstream sees of its end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import hypothesis.strategies as st
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message
from hypothesis import given

from scheduler import UpstreamError, Usage
from scheduler.testing import Latency, Limits
from scheduler.testing.claude.damage import ErrorEvent, ResetMidStream, Stall, Truncate
from scheduler.testing.claude.effects import CloseBeforeHead, Effect, ErrorStatus, Overloaded, RateLimited
from scheduler.upstreams.claude import Call, unretried, usage_of
from tests.agent.claudes import events
from tests.upstreams.calls import SECRET, complete, connected, quick, read, request, until


async def test_the_deltas_are_the_text_of_the_message() -> None:
    async with connected(quick()) as (_, client):
        call = Call(unretried(client), request())
        texts = await read(call)
    assert len(texts) > 1
    assert "".join(texts) == call.message.content[0].to_dict()["text"]
    assert call.usage == usage_of(call.message)
    assert call.usage is not None
    assert (call.usage.requests, call.usage.output_tokens) == (1, 12)
    assert call.usage.input_tokens > 0


async def test_a_long_reply_is_no_problem_for_the_sdk() -> None:
    async with connected(quick(reply_tokens=5000)) as (_, client):
        call = await complete(client, max_tokens=64_000)
    assert call.usage is not None
    assert call.usage.output_tokens == 5000


async def test_reading_from_the_cache_is_free() -> None:
    system = [{"type": "text", "text": "rule " * 2000, "cache_control": {"type": "ephemeral"}}]
    async with connected(quick()) as (_, client):
        written, repeated = [(await complete(client, system=system)) for _ in range(2)]
    assert written.message.usage.cache_creation_input_tokens
    assert repeated.message.usage.cache_read_input_tokens
    assert written.usage is not None
    assert repeated.usage is not None
    assert written.usage.input_tokens > 2000
    assert repeated.usage.input_tokens < 100


async def broken(effect: Effect) -> Call:
    async with connected(quick(effect)) as (_, client):
        call = Call(unretried(client), request())
        assert call.usage == Usage(0, 0, 0)
        with pytest.raises(UpstreamError):
            await read(call)
    with pytest.raises(RuntimeError, match="not complete"):
        call.message.model_dump()
    return call


@pytest.mark.parametrize("effect", [RateLimited(), Overloaded(), ErrorStatus(status=400)])
async def test_a_refused_call_is_one_request_and_no_tokens(effect: Effect) -> None:
    assert (await broken(effect)).usage == Usage(1, 0, 0)


@pytest.mark.parametrize("effect", [CloseBeforeHead(), ErrorStatus(status=500), Truncate(after_chunks=None)])
async def test_of_a_call_that_failed_before_its_first_event_nothing_is_known(effect: Effect) -> None:
    assert (await broken(effect)).usage is None


@pytest.mark.parametrize("effect", [ResetMidStream, Truncate, ErrorEvent])
async def test_of_a_cut_answer_the_input_is_known_and_the_output_is_what_came(effect: Any) -> None:
    latency = Latency(
        ttft_base_s=0, prefill_tps=None, decode_tps=None, chunk_tokens_min=4, chunk_tokens_max=4
    )
    texts: list[str] = []

    async def collect(call: Call) -> None:
        async with call:
            async for text in call:
                texts.append(text)  # noqa: PERF401 - a comprehension would lose what came before the error

    async with connected(quick(effect(after_chunks=2), latency=latency)) as (_, client):
        call = Call(unretried(client), request())
        with pytest.raises(UpstreamError):
            await collect(call)
    # A reset may overtake what was sent before it.
    assert len(texts) <= 2
    assert call.usage is None or call.usage.input_tokens > 0
    if texts:
        assert call.usage is not None
        assert call.usage.output_tokens == max(1, -(-len("".join(texts)) // 4))


def cut(told: list[bytes]) -> AsyncAnthropic:
    """A client whose answers end after some events."""

    def answer(sent: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=b"".join(told))

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    return AsyncAnthropic(api_key="k", base_url="http://claude.test", http_client=http)


@pytest.mark.parametrize(
    ("text", "ends_after", "output"),
    [
        ("日本語の返事です。" * 40, 3, 270),
        ("\ud83d" * 4, 3, 3),
        ("Hello.", 5, 999),  # the usage had been told
    ],
)
async def test_a_cut_answer_is_settled_at_what_was_told_or_by_its_bytes(
    text: str, ends_after: int, output: int
) -> None:
    async with cut(events([text], output_tokens=999)[:ends_after]) as client:
        call = Call(client, request())
        with pytest.raises(UpstreamError, match="truncated_stream"):
            await read(call)
    assert call.usage == Usage(1, 10, output)


async def test_an_answer_with_a_block_that_is_none_is_malformed() -> None:
    told = events(["Hello."])
    start = told[1].replace(b', "text": ""', b"")
    assert start != told[1]
    async with cut([told[0], start, *told[3:]]) as client:
        with pytest.raises(UpstreamError, match="malformed"):
            await complete(client)


async def test_leaving_early_ends_the_upstreams_work() -> None:
    slow = Latency(ttft_base_s=0, prefill_tps=None, decode_tps=200, jitter=0)
    async with connected(quick(latency=slow, reply_tokens=5000)) as (claude, client):
        call = Call(unretried(client), request(max_tokens=5000))
        async with call:
            await anext(call)
        await until(lambda: claude.requests[0].end_ns is not None)
        assert claude.requests[0].cancelled
        assert claude.requests[0].output_tokens < 500
    assert call.usage is not None
    assert call.usage.output_tokens >= 1


async def test_cancelling_ends_the_upstreams_work() -> None:
    async with connected(quick(Stall(after_chunks=None, seconds=30))) as (claude, client):
        task = asyncio.create_task(complete(client))
        await until(lambda: len(claude.requests) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: claude.requests[0].end_ns is not None)
        assert claude.requests[0].cancelled


async def test_what_breaks_after_the_last_event_breaks_nothing() -> None:
    class Body(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in events(["Hello."]):
                yield piece
            raise httpx2.ReadError("reset")

    def answer(sent: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
        call = await complete(AsyncAnthropic(api_key="k", base_url="http://claude.test", http_client=http))
    assert call.usage == Usage(1, 10, 5)
    assert call.message.stop_reason == "end_turn"


async def test_a_real_limit_names_its_time() -> None:
    async with connected(quick(limits=Limits(requests_per_minute=1))) as (_, client):
        await complete(client)
        with pytest.raises(UpstreamError) as caught:
            await complete(client)
    assert caught.value.retry_after is not None
    assert 50 < caught.value.retry_after <= 60


async def test_arguments_that_cannot_be_sent_use_nothing() -> None:
    async with AsyncAnthropic(api_key="sk-test", base_url="http://127.0.0.1:9") as client:
        call = Call(unretried(client), request(system=object()))
        with pytest.raises(TypeError):
            await call.__aenter__()
    assert call.usage == Usage(0, 0, 0)


async def test_what_cannot_be_encoded_is_not_in_the_error() -> None:
    async with AsyncAnthropic(api_key="sk-test", base_url="http://127.0.0.1:9") as client:
        call = Call(unretried(client), request(f"{SECRET} \ud83d"))
        with pytest.raises(ValueError, match="must be valid Unicode") as caught:
            await call.__aenter__()
    assert type(caught.value) is ValueError
    assert caught.value.__context__ is None
    assert call.usage == Usage(0, 0, 0)


NAMES = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
ANYTHING = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.none(), max_size=1)


@given(counts=st.dictionaries(st.sampled_from(NAMES), ANYTHING))
def test_any_counts_make_a_usage(counts: dict[str, Any]) -> None:
    usage = usage_of(Message.model_construct(usage=type("Counts", (), counts)()))
    assert usage.requests == 1
    assert min(usage.input_tokens, usage.output_tokens) >= 0
