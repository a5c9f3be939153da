"""Fault points: places in the product at which a process kills itself. The product knows nothing of them.

A point is named ``operation.moment``. Of a transaction the moments are `before`, `locked` (it holds its
locks), `commit` (all is written), `sent` (the commit was sent and nobody reads the answer), `committed` and
`after`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

from asyncpg.connection import Connection
from asyncpg.transaction import Transaction

from scheduler.stores.postgres import PostgresStore, plain

OPERATIONS = {"claim": "claim", "_settle": "settle", "rescue": "rescue", "_submit": "submit", "beat": "beat"}
"""Methods of the store, and what their points are called."""

TRANSACTION = ("before", "locked", "commit", "sent", "committed", "after")

WORKER_POINTS = (
    *(f"claim.{moment}" for moment in TRANSACTION),
    "handler.start",
    "handler.end",
    *(f"settle.{moment}" for moment in TRANSACTION),
    "beat.before",
    "beat.sent",
    "beat.after",
)
RESCUE_POINTS = tuple(f"rescue.{moment}" for moment in TRANSACTION)
SUBMIT_POINTS = tuple(f"submit.{moment}" for moment in TRANSACTION)

OUTSIDE = "outside"
"""The name under which a kill at a random instant is counted."""

LOCKS = {"rescue": 2}
"""Which answer that is not empty means that the locks are held, where it is not the first."""


@dataclass
class Passage:
    """One operation on its way."""

    operation: str
    answers: int = 0

    @property
    def locked(self) -> bool:
        return self.answers >= LOCKS.get(self.operation, 1)


_passage: ContextVar[Passage | None] = ContextVar("passage", default=None)


async def _leave_it_to_the_general_way(*_: Any) -> None:
    return None


class Trap:
    """Kills this process at the `nth` passage of `point`; `note` is called with the point right before.

    Or does something else to it, by another signal.
    """

    def __init__(
        self, point: str | None, nth: int, note: Callable[[str], None], number: int = signal.SIGKILL
    ) -> None:
        self._point = point
        self._left = nth
        self._note = note
        self._signal = number

    def passed(self, point: str) -> None:
        if self._is_time(point):
            self._spring()

    def passing(self, point: str) -> None:
        """Kill in the next turn of the loop: what the caller is about to send goes out before."""
        if self._is_time(point):
            asyncio.get_running_loop().call_soon(self._spring)

    def _is_time(self, point: str) -> bool:
        if point == self._point:
            self._left -= 1
            return self._left == 0
        return False

    def _spring(self) -> None:
        self._note(self._point or "")
        os.kill(os.getpid(), self._signal)

    def install(self) -> None:
        """Wrap the store and its driver in this process."""
        if (self._point or "").startswith("settle."):
            # Nearly all tries end in one round trip; these points are of the transaction for all others.
            setattr(plain, "settle", _leave_it_to_the_general_way)  # noqa: B010
        for method, operation in OPERATIONS.items():
            setattr(PostgresStore, method, self._operation(operation, getattr(PostgresStore, method)))
        setattr(Connection, "fetch", self._fetch(Connection.fetch))  # noqa: B010 - mypy forbids the plain way
        setattr(Transaction, "__aexit__", self._leaving(Transaction.__aexit__))  # noqa: B010

    def _operation(self, name: str, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(original)
        async def wrapped(*arguments: Any, **settings: Any) -> Any:
            token = _passage.set(Passage(name))
            try:
                self.passed(f"{name}.before")
                answer = await original(*arguments, **settings)
                if answer is not None:  # a claim that found nothing is no claim
                    self.passed(f"{name}.after")
                return answer
            finally:
                _passage.reset(token)

        return wrapped

    def _fetch(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(original)
        async def wrapped(*arguments: Any, **settings: Any) -> Any:
            passage = _passage.get()
            if passage is not None and passage.operation == "beat":
                self.passing("beat.sent")
            rows = await original(*arguments, **settings)
            if passage is not None and rows and not passage.locked:
                passage.answers += 1
                if passage.locked:
                    self.passed(f"{passage.operation}.locked")
            return rows

        return wrapped

    def _leaving(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(original)
        async def wrapped(transaction: Any, kind: Any, error: Any, trace: Any) -> Any:
            passage = _passage.get()
            told = passage if passage is not None and kind is None and passage.locked else None
            if told is not None:
                self.passed(f"{told.operation}.commit")
                self.passing(f"{told.operation}.sent")
            answer = await original(transaction, kind, error, trace)
            if told is not None:
                self.passed(f"{told.operation}.committed")
            return answer

        return wrapped
