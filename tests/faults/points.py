"""Fault points: places in the product at which a process kills itself. The product knows nothing of them.

A point is named ``operation.moment``. Of a transaction the moments are `before`, `locked` (it holds its
locks), `commit` (all is written), `sent` (the commit was sent and nobody reads the answer) and `after`
(it was read, and nothing has been done about it). Of a single statement they are `sent` and `after`.
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
from scheduler.stores.postgres.hearing import Hearing
from scheduler.stores.postgres.home import Home
from scheduler.stores.postgres.statements import statement

OPERATIONS: tuple[tuple[type, str, str], ...] = (
    (PostgresStore, "claim", "claim"),
    (PostgresStore, "_settle", "settle"),
    (PostgresStore, "rescue", "rescue"),
    (PostgresStore, "_submit", "submit"),
    (PostgresStore, "beat", "beat"),
    (PostgresStore, "forget", "forget"),
    (Hearing, "_write", "hear"),
    (Hearing, "_look_at_some", "look"),
    (Home, "_join", "join"),
    (Home, "_grant", "grant"),
    (Home, "_give_back", "back"),
)
"""Methods, and what their points are called."""

STATEMENTS = {
    "renew": statement("home_beat"),
    "plain": "select waitline.submit_plain(",
    "ended": "select waitline.settle_plain(",
    "claimed": "select * from waitline.claim_plain(",
    "taken": statement("claim_deferred"),
}
"""How the statements begin that have points of their own."""

AT_GATES = "select waitline.gate_lines("
"""How the statement begins by which a claim at gates locks."""

TRANSACTION = ("before", "locked", "commit", "sent", "after")

UNSURE = ("locked", "sent", "after")
"""Of what becomes of a transaction: nothing, either, all of it."""

WORKER_POINTS = (
    *(f"claim.{moment}" for moment in TRANSACTION),
    "claimed.sent",
    "claimed.after",
    "handler.start",
    "handler.end",
    *(f"settle.{moment}" for moment in TRANSACTION),
    "ended.sent",
    "ended.after",
    "beat.before",
    "beat.sent",
    "beat.after",
)
RESCUE_POINTS = tuple(f"rescue.{moment}" for moment in TRANSACTION)
SUBMIT_POINTS = tuple(f"submit.{moment}" for moment in TRANSACTION)
PLAIN_POINTS = ("plain.sent", "plain.after")
CALLER_POINTS = (
    *(f"join.{moment}" for moment in UNSURE),
    *(f"grant.{moment}" for moment in UNSURE),
    "block.start",
    "block.end",
    *(f"end.{moment}" for moment in UNSURE),
    *(f"back.{moment}" for moment in UNSURE[:2]),
    "renew.sent",
)
FORGET_POINTS = tuple(f"forget.{moment}" for moment in UNSURE)
HEAR_POINTS = tuple(f"hear.{moment}" for moment in UNSURE)
LADDER_POINTS = (*(f"look.{moment}" for moment in UNSURE), "taken.sent", "taken.after")

OUTSIDE = "outside"
"""The name under which a kill at a random instant is counted."""

WHO = {
    "worker": (*WORKER_POINTS, *RESCUE_POINTS, *HEAR_POINTS, *LADDER_POINTS),
    "caller": CALLER_POINTS,
    "submitter": SUBMIT_POINTS,
    "plain": PLAIN_POINTS,
    "forgetter": FORGET_POINTS,
}
"""Which kind of process dies at which points."""

POINTS = (*(point for points in WHO.values() for point in points), OUTSIDE)

HOLDERS = frozenset({*WHO["worker"], *WHO["caller"], OUTSIDE})
"""Points at which the process that dies can hold a grant itself."""

GATED = frozenset(HEAR_POINTS)
"""Points that nobody comes to without a gate."""

CLIMBED = frozenset(LADDER_POINTS)
"""Points that nobody comes to without a ladder."""

UNGATED = frozenset({"claimed.sent", "claimed.after", "ended.sent", "ended.after", *PLAIN_POINTS})
"""Points that nobody comes to with one: nothing is decided in one round trip there."""

LOCKS = {"rescue": 2, "forget": 2, "look": 2}
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


async def _leave_ends_to_the_general_way(*_: Any) -> None:
    return None


async def _leave_claims_to_the_general_way(*_: Any) -> tuple[bool, None]:
    return False, None


def _always() -> bool:
    return True


class Trap:
    """Kills this process at the `nth` passage of `point`; `note` is called with the point right before.

    Or does something else to it, by another signal. Only passages while `ready()` count.
    """

    def __init__(
        self,
        point: str | None,
        nth: int,
        note: Callable[[str], None],
        number: int = signal.SIGKILL,
        ready: Callable[[], bool] = _always,
    ) -> None:
        self._point = point
        self._left = nth
        self._note = note
        self._signal = number
        self._ready = ready

    def passed(self, point: str) -> None:
        if self._is_time(point):
            self._spring()

    def passing(self, point: str) -> None:
        """Kill in the next turn of the loop: what the caller is about to send goes out before."""
        if self._is_time(point):
            asyncio.get_running_loop().call_soon(self._spring)

    def _is_time(self, point: str) -> bool:
        if point == self._point and self._ready():
            self._left -= 1
            return self._left == 0
        return False

    def _spring(self) -> None:
        self._note(self._point or "")
        os.kill(os.getpid(), self._signal)

    def install(self, **renamed: str) -> None:
        """Wrap the store and its driver in this process. `renamed`: operations with another name here."""
        if (self._point or "").startswith("settle."):
            # Nearly all tries end in one round trip; these points are of the transaction for all others.
            setattr(plain, "settle", _leave_ends_to_the_general_way)  # noqa: B010
        if (self._point or "").startswith("claim."):
            setattr(plain, "claim", _leave_claims_to_the_general_way)  # noqa: B010
        for owner, method, name in OPERATIONS:
            wrapped = self._operation(renamed.get(name, name), getattr(owner, method))
            setattr(owner, method, wrapped)
        setattr(Connection, "fetch", self._fetch(Connection.fetch))  # noqa: B010 - mypy forbids the plain way
        setattr(Connection, "fetchval", self._fetchval(Connection.fetchval))  # noqa: B010
        setattr(Transaction, "__aexit__", self._leaving(Transaction.__aexit__))  # noqa: B010

    def _operation(self, name: str, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(original)
        async def wrapped(*arguments: Any, **settings: Any) -> Any:
            passage = Passage(name)
            token = _passage.set(passage)
            try:
                self.passed(f"{name}.before")
                answer = await original(*arguments, **settings)
                if answer is not None or passage.locked:  # a claim that found nothing is no claim
                    self.passed(f"{name}.after")
                return answer
            finally:
                _passage.reset(token)

        return wrapped

    def _fetch(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(original)
        async def wrapped(connection: Any, query: str, *arguments: Any, **settings: Any) -> Any:
            passage = _passage.get()
            single = next((name for name, text in STATEMENTS.items() if query.startswith(text)), None)
            if passage is not None and passage.operation == "beat":
                self.passing("beat.sent")
            if single is not None:
                self.passing(f"{single}.sent")
            rows = await original(connection, query, *arguments, **settings)
            if single is not None and rows:
                self.passed(f"{single}.after")
            if rows:
                self._answered(passage)
            return rows

        return wrapped

    def _fetchval(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(original)
        async def wrapped(connection: Any, query: str, *arguments: Any, **settings: Any) -> Any:
            found = await original(connection, query, *arguments, **settings)
            if query.startswith(AT_GATES) and found is not None:
                self._answered(_passage.get())
            return found

        return wrapped

    def _answered(self, passage: Passage | None) -> None:
        """An answer came that is not empty: if it is the one, the locks are held."""
        if passage is not None and not passage.locked:
            passage.answers += 1
            if passage.locked:
                self.passed(f"{passage.operation}.locked")

    def _leaving(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(original)
        async def wrapped(transaction: Any, kind: Any, error: Any, trace: Any) -> Any:
            passage = _passage.get()
            told = passage if passage is not None and kind is None and passage.locked else None
            if told is not None:
                self.passed(f"{told.operation}.commit")
                self.passing(f"{told.operation}.sent")
            return await original(transaction, kind, error, trace)

        return wrapped
