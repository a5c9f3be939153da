"""Listening to a client while its request waits, without losing a byte of the request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.types import Message, Receive

READ_AHEAD = 65_536
"""Bytes that are read of any waiting request: servers hold as much themselves before they stop reading."""

MESSAGE_BYTES = 512
"""What a kept message costs besides its body: a client may send its body byte by byte."""


class Buffers:
    """The bytes kept for all waiting requests together. Where `most` is reached, longer ones stay unread."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0


class Incoming:
    """The messages of one request: kept while it waits, handed on to the app in their order afterwards.

    ASGI tells of a disconnect only to whoever calls `receive`, and the calls before it bring the body: so
    somebody must call it while the request waits, and keep what comes. `gone` says that the client has left;
    `on_gone` is called at that moment if the request still waits.
    """

    def __init__(self, receive: Receive, buffers: Buffers, on_gone: Callable[[], None]) -> None:
        self._receive = receive
        self._buffers = buffers
        self._on_gone = on_gone
        self._messages: deque[Message] = deque()
        self._size = 0
        self._waiting = True
        self._listening = True
        self._news = asyncio.Event()
        self.gone = False

    async def attend(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, listening beside it until `proceed` is called. Its exception comes out as it is."""
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            ear = group.create_task(self._listen(), name="waitline: listen for a disconnect")
            try:
                await work
            except Exception as error:  # noqa: BLE001 - raised again below, outside the group that would wrap it
                failure = error
            finally:
                ear.cancel()
                self._keep(-self._size)
        if failure is not None:
            raise failure

    def proceed(self) -> None:
        """The wait is over: read no more than the app asks for."""
        self._waiting = False

    async def receive(self) -> Message:
        """The app's `receive`: first what was kept, then straight from the server."""
        while not self._messages:
            if not self._listening:
                return await self._receive()
            self._news.clear()
            await self._news.wait()
        if self._messages[0]["type"] == "http.disconnect":
            return self._messages[0]  # and again, however often the app asks
        message = self._messages.popleft()
        self._keep(-_size(message))
        return message

    async def _listen(self) -> None:
        """Read until the client leaves, the buffer is full, or the call that was out when the wait ended."""
        try:
            while self._waiting and (self._size < READ_AHEAD or self._buffers.held < self._buffers.most):
                message = await self._receive()
                self._messages.append(message)
                self._keep(_size(message))
                self._news.set()
                if message["type"] == "http.disconnect":
                    self.gone = True
                    if self._waiting:
                        self._on_gone()
                    return
        finally:
            self._listening = False

    def _keep(self, more: int) -> None:
        self._size += more
        self._buffers.held += more


def _size(message: Message) -> int:
    return len(message.get("body", b"")) + MESSAGE_BYTES
