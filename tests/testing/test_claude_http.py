"""The HTTP underneath: kept-alive, pipelined, chunked, broken and crowded connections."""

import asyncio
from dataclasses import replace

import pytest

from scheduler.testing import Latency, Script, SimulatedClaude
from tests.testing.claude_client import (
    HEADERS,
    asked,
    collect,
    connection,
    create,
    quick,
    read_response,
    request_bytes,
    sdk,
    until,
)

ECHO = quick(scripts=(Script(echo=True),))


async def test_a_connection_serves_many_requests() -> None:
    async with SimulatedClaude(ECHO) as claude, connection(claude) as (reader, writer):
        for n in range(5):
            writer.write(request_bytes("/v1/messages", asked(f"prompt {n}")))
            answer = await read_response(reader)
            assert answer.json()["content"][0]["text"] == f"prompt {n}"
        assert len(claude._connections) == 1


async def test_requests_sent_ahead_are_answered_in_order_and_read_only_so_far() -> None:
    slow = Latency(ttft_base_s=0.02, jitter=0, prefill_tps=None, decode_tps=None)
    config = replace(ECHO, latency=slow)
    async with SimulatedClaude(config) as claude, connection(claude) as (reader, writer):
        prompts = [f"{n} " + "x" * 60_000 for n in range(15)]
        writer.write(b"".join(request_bytes("/v1/messages", asked(prompt)) for prompt in prompts))
        await until(lambda: len(claude._connections) == 1)
        (served,) = claude._connections
        await until(lambda: not served._transport.is_reading())
        assert len(claude.requests) < len(prompts)
        answers = [(await read_response(reader)).json()["content"][0]["text"] for _ in prompts]
        assert served._transport.is_reading()
    assert answers == prompts


async def test_a_chunked_body_is_read_and_an_early_question_answered() -> None:
    body = request_bytes("/v1/messages", asked("chunked")).partition(b"\r\n\r\n")[2]
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**HEADERS, "expect": "100-continue"}.items())
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n{lines}\r\n".encode()
    async with SimulatedClaude(ECHO) as claude, connection(claude) as (reader, writer):
        writer.write(head)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        for piece in (body[:10], body[10:], b""):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        answer = await read_response(reader)
    assert answer.json()["content"][0]["text"] == "chunked"


@pytest.mark.parametrize(
    "data", [b"what is this\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /" + b"x" * 70_000]
)
async def test_what_is_not_http_is_refused_and_the_connection_closed(data: bytes) -> None:
    async with SimulatedClaude(quick()) as claude, connection(claude) as (reader, writer):
        writer.write(data)
        answer = await reader.read(-1)
        assert claude.requests == []
    assert answer.startswith(b"HTTP/1.1 4")


async def test_a_request_that_never_ends_is_dropped_with_its_client() -> None:
    async with SimulatedClaude(quick()) as claude:
        async with connection(claude) as (_, writer):
            writer.write(request_bytes("/v1/messages", asked())[:-5])
            await until(lambda: len(claude._connections) == 1)
        await until(lambda: not claude._connections)
        assert claude.requests == []


async def test_a_body_far_over_the_limit_ends_the_connection() -> None:
    async with SimulatedClaude(quick(body_bytes_max=1_000)) as claude, connection(claude) as (reader, writer):
        writer.write(request_bytes("/v1/messages", b"x" * 300_000))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)


async def test_a_client_that_asks_to_close_is_closed() -> None:
    async with SimulatedClaude(quick()) as claude, connection(claude) as (reader, writer):
        writer.write(request_bytes("/v1/messages", asked(), headers={**HEADERS, "connection": "close"}))
        assert (await reader.read(-1)).startswith(b"HTTP/1.1 200")


async def test_connections_are_bounded() -> None:
    async with SimulatedClaude(quick(connections_max=1)) as claude, connection(claude) as (reader, writer):
        writer.write(request_bytes("/v1/messages", asked()))
        await read_response(reader)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            async with connection(claude) as (other, _):
                await other.readexactly(1)
        assert len(claude._connections) == 1


async def test_a_slow_reader_gets_all_of_a_large_answer() -> None:
    # More than the buffers of two sockets hold, in few words.
    text = " ".join(["x" * 200_000] * 60)
    async with (
        SimulatedClaude(quick(scripts=(Script(text=text),))) as claude,
        connection(claude) as (reader, writer),
    ):
        writer.write(request_bytes("/v1/messages", asked(max_tokens=10**9)))
        await until(lambda: claude.stats().in_flight == 1)
        answer = await read_response(reader)
    assert answer.json()["content"][0]["text"] == text


async def test_hundreds_of_connections_at_once() -> None:
    async with SimulatedClaude(ECHO) as claude:
        async with sdk(claude) as client:
            plain = asyncio.gather(*(create(client, str(n)) for n in range(100)))
            streams = asyncio.gather(*(collect(client) for _ in range(100)))
            messages, events = await asyncio.gather(plain, streams)
        assert claude.stats().admitted == 200
        assert len({attempt.request_id for attempt in claude.requests}) == 200
    assert [message.content[0].text for message in messages] == [str(n) for n in range(100)]
    assert {stream[-1].type for stream in events} == {"message_stop"}
