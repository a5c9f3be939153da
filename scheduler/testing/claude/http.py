"""HTTP/1.1 on a raw asyncio transport, so that a response can also be reset, closed early or dribbled."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11

from scheduler.testing.claude.errors import Headers
from scheduler.testing.claude.frames import End

if TYPE_CHECKING:
    from scheduler.testing.claude.config import ClaudeConfig

# A client that sends requests ahead is read so far, and no further until its turn.
READ_AHEAD_BYTES_MAX = 65_536
# A body over its limit is read to its end, so that the client gets to see the 413, but only up to so many
# times it.
OVERSIZE_FACTOR_MAX = 4
# Closing with these options sends a RST instead of a FIN.
LINGER_NOT_AT_ALL = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read completely; header names are in lower case, the arrival is that of its head."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    oversize: bool
    arrival_ns: int


class Exchange:
    """A request and the means to answer it."""

    def __init__(self, connection: Connection, request: Request) -> None:
        """Wait for an answer."""
        self.request = request
        self.bytes_out = 0
        self.finished = False
        self.head_sent = False
        self.disconnect_ns: int | None = None
        self._connection = connection
        self._head = b""

    def start(self, status: int, headers: Headers) -> None:
        """Prepare the head; it leaves with the first `send`, in the same write."""
        self._head = self._connection.encode(h11.Response(status_code=status, headers=headers))

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Write the head if it is still here, some of the body, and with `last` the end."""
        head, self._head = self._head, b""
        self.head_sent = True
        body = self._connection.encode(h11.Data(data=data)) if data else b""
        end = self._connection.encode(h11.EndOfMessage()) if last else b""
        self.finished = self.finished or last
        self.bytes_out += len(data)
        await self._connection.write(head + body + end)

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response in one write."""
        self.start(status, [*headers, ("content-length", str(len(body)))])
        await self.send(b"" if self.request.method == "HEAD" else body, last=True)

    def interim(self, status: int) -> None:
        """Send an interim response, which leaves the final status open."""
        self._connection.write_now(
            self._connection.encode(h11.InformationalResponse(status_code=status, headers=[]))
        )

    def end(self, how: End) -> None:
        """End the connection with a RST or a FIN, whatever was announced."""
        self.finished = True
        self._connection.end(reset=how == "reset")


Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Listener:
    """What all connections of a server share; the configuration may change while it listens.

    `bytes_max` says how large the body of a request may be, by method and path.
    """

    handle: Handler
    now_ns: Callable[[], int]
    bytes_max: Callable[[str, str], int]
    config: Callable[[], ClaudeConfig]
    connections: set[Connection]


class Connection(asyncio.Protocol):
    """One client connection: requests are answered one after the other, by one task."""

    def __init__(self, listener: Listener) -> None:
        """Wait to be connected."""
        self._listener = listener
        self._http = h11.Connection(h11.SERVER)
        self._transport: asyncio.Transport
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._exchange: Exchange | None = None
        self._read_ahead = 0
        self._gone = False
        self._ended = False
        self.task: asyncio.Task[None] | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start answering, unless there are too many connections."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"a stream transport is needed, got {transport!r}")
        self._transport = transport
        if len(self._listener.connections) >= self._listener.config().connections_max:
            transport.abort()
            return
        self._listener.connections.add(self)
        # The listener's set owns the task, and the server awaits all of it when it closes.
        self.task = asyncio.get_running_loop().create_task(self._serve())
        self.task.add_done_callback(self._done)

    def data_received(self, data: bytes) -> None:
        """Hand bytes to the parser."""
        self._http.receive_data(data)
        self._readable.set()
        if self._exchange is not None:
            self._read_ahead += len(data)
            if self._read_ahead > READ_AHEAD_BYTES_MAX:
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Let the transport close: a client that stops sending has left."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note when the client left, and stop working for it."""
        del exc
        self._gone = True
        self._readable.set()
        self._writable.set()
        exchange = self._exchange
        if exchange is not None and not exchange.finished:
            exchange.disconnect_ns = self._listener.now_ns()
            if self._listener.config().finish_abandoned:
                return
        if self.task is not None and not self._ended:
            self.task.cancel()

    def pause_writing(self) -> None:
        """Hold the handler back: the client reads slower than it writes."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let the handler write again."""
        self._writable.set()

    # What an exchange calls.

    def encode(self, event: h11.Event) -> bytes:
        """Turn an event into bytes; nothing once the connection has ended."""
        if self._gone or self._ended:
            return b""
        return self._http.send(event) or b""

    async def write(self, data: bytes) -> None:
        """Write, and wait while the client is slow to read."""
        self.write_now(data)
        if not self._writable.is_set():
            await self._writable.wait()

    def write_now(self, data: bytes) -> None:
        """Write without waiting."""
        if data and not self._gone and not self._ended:
            self._transport.write(data)

    def end(self, *, reset: bool) -> None:
        """End the connection from this side."""
        self._ended = True
        if not reset:
            self._transport.close()
            return
        connected = self._transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT_AT_ALL)
        self._transport.abort()

    def abort(self) -> None:
        """Drop the connection and cancel its task, for the server's own end."""
        self._ended = True
        self._transport.abort()
        if self.task is not None:
            self.task.cancel()

    # The task.

    async def _serve(self) -> None:
        try:
            while not self._gone and not self._ended:
                request = await self._read()
                if request is None:
                    break
                self._exchange = exchange = Exchange(self, request)
                await self._listener.handle(exchange)
                self._exchange = None
                if not exchange.finished or self._http.our_state is not h11.DONE:
                    break
                self._next_request()
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
        finally:
            if not self._ended:
                self._transport.close()

    def _next_request(self) -> None:
        self._http.start_next_cycle()
        if self._read_ahead > READ_AHEAD_BYTES_MAX and not self._gone:
            self._transport.resume_reading()
        self._read_ahead = 0

    async def _read(self) -> Request | None:
        """Read the next request; `None` when the client is done."""
        head: h11.Request | None = None
        arrival_ns, size, body = 0, 0, list[bytes]()
        size_max = 0
        while True:
            event = await self._next_event()
            match event:
                case h11.Request():
                    head, arrival_ns = event, self._listener.now_ns()
                    method, path, _ = _asked(head)
                    size_max = self._listener.bytes_max(method, path)
                    if self._http.they_are_waiting_for_100_continue:
                        self.write_now(self.encode(h11.InformationalResponse(status_code=100, headers=[])))
                case h11.Data():
                    size += len(event.data)
                    if size <= size_max:
                        body.append(bytes(event.data))
                    elif size > OVERSIZE_FACTOR_MAX * size_max:
                        return None
                case h11.EndOfMessage() if head is not None:
                    return _request(head, b"".join(body), size > size_max, arrival_ns)
                case _:
                    return None

    async def _next_event(self) -> h11.Event | None:
        """Return the next event, or `None` when there will be none."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._gone:
                return None
            self._readable.clear()
            await self._readable.wait()
        return event if isinstance(event, h11.Event) else None

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Answer what is not HTTP, if an answer is still possible."""
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            head = h11.Response(
                status_code=error.error_status_hint,
                headers=[("content-length", "0"), ("connection", "close")],
            )
            await self.write(self.encode(head) + self.encode(h11.EndOfMessage()))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._listener.connections.discard(self)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "The simulated Claude failed", "exception": error, "protocol": self}
            task.get_loop().call_exception_handler(context)


def _asked(head: h11.Request) -> tuple[str, str, str]:
    """Return method, path and query."""
    path, _, query = head.target.decode("latin-1").partition("?")
    return head.method.decode("latin-1"), path, query


def _request(head: h11.Request, body: bytes, oversize: bool, arrival_ns: int) -> Request:
    method, path, query = _asked(head)
    return Request(
        method=method,
        path=path,
        query=query,
        headers={name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers},
        body=body,
        oversize=oversize,
        arrival_ns=arrival_ns,
    )
