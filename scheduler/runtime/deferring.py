"""Deferred jobs of a store: a worker takes them whenever some are there and it has room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from scheduler.core.quota import whole
from scheduler.runtime.job import Handler
from scheduler.runtime.tries import Try
from scheduler.stores.values import Claim

SAFETY = 30.0
"""Seconds after which it looks, whatever it heard."""


class Deferring:
    """Room for `most` deferred jobs, which `handler` runs; `wake` when there may be some."""

    def __init__(self, handler: Handler | None, most: int) -> None:
        if handler is not None and not callable(handler):
            raise TypeError(f"deferred: must be an async callable, got {handler!r}")
        self.handler = handler
        self.wake = asyncio.Event()
        self._most = self._room = whole("max_deferred", most, 1)
        self._closed = False

    @property
    def taken(self) -> int:
        """How many it has."""
        return self._most - self._room

    def end(self, one: Try) -> None:
        """A try is over, one of them or another. A handler that is closed gets no more."""
        if one.deferred:
            self._room += 1
            self._closed = self._closed or one.reason == "closed"
            self.wake.set()

    def close(self) -> None:
        """Take no more."""
        self._closed = True
        self.wake.set()

    async def take(self, store: Any, worker: str) -> AsyncIterator[Claim]:
        """Jobs that are deferred, until it is closed."""
        while not self._closed:
            self.wake.clear()
            claims = await store.claim_deferred(worker, self._room) if self._room else []
            self._room -= len(claims)
            for claim in claims:
                yield claim
            if not claims:
                with suppress(TimeoutError):
                    async with asyncio.timeout(SAFETY):
                        await self.wake.wait()
