"""The clients with which the simulated Claude is tested: the real SDK, and plain bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from anthropic import AsyncAnthropic
from anthropic.types import Message

from scheduler.testing import ClaudeConfig, Fault, Latency, SimulatedClaude

MODEL = "claude-haiku-4-5"
KEY = "sk-test-key"
HEADERS = {"x-api-key": KEY, "anthropic-version": "2023-06-01", "content-type": "application/json"}


def quick(*faults: Fault, **fields: Any) -> ClaudeConfig:
    """A configuration whose answers take no time and have few words."""
    return ClaudeConfig(**{"latency": Latency.none(), "reply_tokens": 12, "faults": faults, **fields})


def sdk(claude: SimulatedClaude, *, max_retries: int = 0, **options: Any) -> AsyncAnthropic:
    return AsyncAnthropic(
        **{"api_key": KEY, "base_url": claude.base_url, "max_retries": max_retries, **options}
    )


def asked(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """The arguments of a request for a message."""
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **fields}


async def create(client: AsyncAnthropic, text: str = "hello", tenant: str = "", **fields: Any) -> Message:
    """Create a message, on behalf of a tenant if one is named."""
    headers = {"x-waitline-tenant": tenant} if tenant else {}
    message: Message = await client.messages.create(**asked(text, **fields), extra_headers=headers)
    return message


async def collect(client: AsyncAnthropic, **fields: Any) -> list[Any]:
    """Create a stream and return its events."""
    return [event async for event in await client.messages.create(**asked(stream=True, **fields))]


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def request_bytes(
    path: str, body: object = None, *, method: str = "POST", headers: dict[str, str] | None = None
) -> bytes:
    """A request as bytes; a body that is not bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    fields = {"host": "x", "content-length": str(len(data)), **(HEADERS if headers is None else headers)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data


class Response:
    """A response read from a socket; `body` is as it came, chunks and all."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])
        }
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


@asynccontextmanager
async def connection(
    claude: SimulatedClaude,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A plain connection."""
    port = int(claude.base_url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def read_response(reader: asyncio.StreamReader) -> Response:
    """Read a response with a length."""
    head = (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
    response = Response(head, b"")
    response.body = await reader.readexactly(int(response.headers.get("content-length", "0")))
    return response


async def call(
    claude: SimulatedClaude,
    path: str,
    body: object = None,
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> Response:
    """Send one request on a connection of its own."""
    async with connection(claude) as (reader, writer):
        writer.write(request_bytes(path, body, method=method, headers=headers))
        if method == "HEAD":
            head = (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
            return Response(head, b"")
        return await read_response(reader)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something has happened; the test's time limit bounds it."""
    while not condition():  # noqa: ASYNC110 - what the tests wait for is plain state
        await asyncio.sleep(0)
