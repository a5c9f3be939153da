"""A real server on loopback in this process, raw clients, and a clock that stands still until it is moved."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from scheduler.runtime.clock import Timer

TURNS = 50_000
"""Loop turns after which a condition counts as never met."""


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something is so."""
    for _ in range(TURNS):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


async def turns(count: int = 50) -> None:
    """Give whatever could happen the chance to."""
    for _ in range(count):
        await asyncio.sleep(0)


class StillClock:
    """A clock that a test moves: what it arms goes off in `move`."""

    def __init__(self) -> None:
        self.time = 1_000_000_000
        self.timers: list[StillTimer] = []

    def now(self) -> int:
        return self.time

    def timer(self, callback: Callable[[], None]) -> Timer:
        timer = StillTimer(callback)
        self.timers.append(timer)
        return timer

    def move(self, seconds: float) -> None:
        target = self.time + round(seconds * 1e9)
        while due := [timer for timer in self.timers if timer.when is not None and timer.when <= target]:
            first = min(due, key=lambda timer: timer.when or 0)
            self.time, first.when = max(self.time, first.when or 0), None
            first.callback()
        self.time = target


class StillTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.when: int | None = None

    def arm(self, when: int) -> None:
        self.when = when

    def close(self) -> None:
        self.when = None


@asynccontextmanager
async def serve(app: Any, *, lifespan: bool = False) -> AsyncIterator[int]:
    """Run uvicorn on a free port of 127.0.0.1 and yield the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    config = uvicorn.Config(
        app, log_config=None, lifespan="on" if lifespan else "off", http="h11", timeout_graceful_shutdown=1
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    try:
        yield port
    finally:
        await server.shutdown(sockets=[listener])


class Reply:
    """One response read from a socket."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A connection that does exactly what a test tells it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, tenant: str = "acme", body: bytes = b"", path: str = "/", **headers: str) -> None:
        """Write a request; `_` in a header's name stands for `-`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        fields = {"host": "x", "x-tenant-id": tenant, "content-length": str(len(body)), **given}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.writer.write(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)

    async def reply(self) -> Reply:
        """Read one response, by its length or its chunks."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [
            (name.lower(), value) for name, _, value in (line.partition(": ") for line in head[1:] if line)
        ]
        assert len({name for name, _ in pairs}) == len(pairs), f"a header is there twice: {head}"
        headers = dict(pairs)
        status = int(head[0].split()[1])
        if headers.get("transfer-encoding") != "chunked":
            if "content-length" not in headers:
                return Reply(status, headers, await self.reader.read())
            return Reply(status, headers, await self.reader.readexactly(int(headers["content-length"])))
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()
        return Reply(status, headers, body)

    async def ask(self, tenant: str = "acme", body: bytes = b"", path: str = "/", **headers: str) -> Reply:
        self.send(tenant, body, path, **headers)
        return await self.reply()

    def leave(self) -> None:
        """Hang up at once."""
        self.writer.transport.abort()


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def connect_many(port: int, count: int) -> AsyncIterator[list[Client]]:
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        yield [Client(*pair) for pair in pairs]
    finally:
        for _, writer in pairs:
            writer.transport.abort()


def tenant_of(scope: Scope) -> str | None:
    """The tenant that a header names."""
    found = dict(scope["headers"]).get(b"x-tenant-id", b"").decode()
    return found or None


class Desk:
    """An ASGI app that answers when it is told to, and remembers who came and what they sent."""

    def __init__(self, *, held: bool = False) -> None:
        self.came: list[str] = []
        self.bodies: list[bytes] = []
        self.disconnects = 0
        self.go = asyncio.Semaphore(0) if held else asyncio.Semaphore(1_000_000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.came.append(scope["path"])
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        await self.go.acquire()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
