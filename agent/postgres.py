"""Sessions in PostgreSQL: the same conversations for every process that uses the database."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from agent.errors import SessionLost, UnknownSession
from agent.sessions import Session, Turn, check_name
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import LOST, SAFETY, patiently

NS = 1_000_000_000


class _Held:
    """A session that this process holds: the turn of whoever waited for it."""

    def __init__(self, sessions: PostgresSessions, session_id: str, number: int) -> None:
        self._sessions = sessions
        self._session_id = session_id
        self._number = number
        self.holder = secrets.token_hex(16)
        self.said: list[dict[str, Any]] = []

    @property
    def history(self) -> Sequence[dict[str, Any]]:
        return tuple(self.said)

    def begins_after(self, number: int, said: list[dict[str, Any]]) -> None:
        self._number, self.said = number, said

    async def append(self, messages: Iterable[dict[str, Any]]) -> None:
        added = list(messages)
        kept = await self._sessions.conversations.say(self._session_id, self.holder, self._number + 1, added)
        if kept is False:
            raise SessionLost(self._session_id)
        if kept:
            self._number += 1
            self.said += added


class _Line:
    """Those of this process who want one session: one of them at a time asks the database for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.free = asyncio.Event()
        self.users = 0


class PostgresSessions:
    """Keeps conversations in the database of a store. Hand it to an `Agent` as `sessions`.

    The store must be open while sessions are used: a `Worker` or `Scheduler` that has it opens it, and
    ``async with store`` does. `keep_sessions` of the store is how long an unused session is kept.

    A turn holds its session by a lease of the store's `lease` seconds, which is renewed while the turn lasts.
    Turns of one process follow one another in the order in which they were asked for; between processes,
    whoever comes first. A process that dies is waited for until its lease is over. A turn that lost its
    lease to another one, since its process hung for that long, cannot append any more: `SessionLost`.

    Calls ride out a lost connection, with pauses of up to five seconds; cancel them to give up.
    """

    def __init__(self, store: PostgresStore) -> None:
        if not isinstance(store, PostgresStore):
            raise TypeError(f"store: must be a PostgresStore, got {store!r}")
        self._store = store
        self.conversations = store.conversations
        self._lines: dict[str, _Line] = {}
        self._holders: dict[str, str] = {}
        self._beating: asyncio.Task[None] | None = None
        store.on_session.append(self._heard)

    async def create(
        self, tenant: str, user: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Session:
        """Begin a conversation. `metadata` must be JSON values: TypeError."""
        session_id = secrets.token_hex(16)
        kept = dict(metadata or {})
        if not _is_json(kept):
            raise TypeError("metadata: must be a mapping of JSON values, got something that is not")
        person = None if user is None else check_name("user", user)
        tenant = check_name("tenant", tenant)
        await self.conversations.begin(session_id, tenant, session_id, person, kept)
        return await self.get(session_id)

    async def get(self, session_id: str) -> Session:
        """Return a session by its id, whoever owns it; raises `UnknownSession`."""
        row = await self.conversations.find(session_id) if "\0" not in session_id else None
        if row is None:
            raise UnknownSession(session_id)
        return _session(row)

    async def named(self, tenant: str, name: str) -> Session:
        """Return the tenant's session of this name, and begin it if there is none.

        Those who ask at the same time, wherever they are, get the same one. `name`: 1 to 512 characters.
        """
        tenant, name = check_name("tenant", tenant), check_name("name", name)
        while (row := await self.conversations.named(tenant, name)) is None:
            await self.conversations.begin(secrets.token_hex(16), tenant, name, None, {})
        return _session(row)

    @asynccontextmanager
    async def turn(self, session_id: str) -> AsyncIterator[Turn]:
        """Wait until nobody else continues the session, in any process; raises `UnknownSession`."""
        line = self._lines.setdefault(session_id, _Line())
        line.users += 1
        locked = False
        held = _Held(self, session_id, 0)
        try:
            await line.lock.acquire()
            locked = True
            await self._take(line, session_id, held)
            yield held
        finally:
            if not locked:
                self._gone(session_id, line)
            else:
                # Not waited for: with the database gone, the end of a turn would hang here. Those of this
                # process who come next do wait for it.
                self._store.group.create_task(self._leave(line, session_id, held.holder))

    async def end(self, session_id: str) -> None:
        """Forget a session, if there is one."""
        await self.conversations.end(session_id)

    # --- holding --------------------------------------------------------------------------------------------

    async def _take(self, line: _Line, session_id: str, held: _Held) -> None:
        """Hold the session, as soon as nobody else does, and read what was said."""
        while True:
            line.free.clear()
            taken = await self.conversations.take(session_id, held.holder, self._store.lease_ns)
            if taken is None:
                raise UnknownSession(session_id)
            if taken.held:
                break
            # A notification may be lost, and a holder may die.
            wait = min(SAFETY, self._store.until(taken.until) + 0.001)
            with suppress(TimeoutError):
                await asyncio.wait_for(line.free.wait(), wait)
        self._holders[session_id] = held.holder
        if self._beating is None:
            self._beating = self._store.group.create_task(self._beat())
        held.begins_after(taken.turns, await self.conversations.history(session_id))

    async def _leave(self, line: _Line, session_id: str, holder: str) -> None:
        """Let the session go, and then the next one of this process have it."""
        try:
            if self._holders.get(session_id) == holder:
                del self._holders[session_id]
            if not self._holders and self._beating is not None:
                self._beating.cancel()
                self._beating = None
            # Also where it was not seen to be held: the answer may have been lost.
            await patiently(partial(self.conversations.leave, session_id, holder))
        finally:
            line.lock.release()
            self._gone(session_id, line)

    def _gone(self, session_id: str, line: _Line) -> None:
        line.users -= 1
        if not line.users and self._lines.get(session_id) is line:
            del self._lines[session_id]

    async def _beat(self) -> None:
        """Renew the leases of all turns, three times in the length of one."""
        while True:
            await asyncio.sleep(self._store.lease_ns / NS / 3)
            with suppress(*LOST):
                await self.conversations.hold(self._holders, self._store.lease_ns)

    def _heard(self, session_id: str | None) -> None:
        """A session was let go, or, with None, any of them may have been."""
        lines = self._lines.values() if session_id is None else filter(None, [self._lines.get(session_id)])
        for line in lines:
            line.free.set()


def _session(row: Any) -> Session:
    return Session(
        id=row["id"],
        tenant=row["tenant"],
        name=row["name"],
        user=row["person"],
        metadata=json.loads(row["metadata"]),
    )


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
