"""Conversations: the rows of sessions, and the leases of those who continue them.

A session is held by a lease in its row and not by a lock of a connection: it costs no connection while a
model answers, it works through a pooler that hands out transactions, and it outlives a restart of the
database. A holder that dies is waited for until its lease is over. One that only hangs may come back after
that, when somebody else has the turn; what it has to say then is refused, since only the holder of a turn may
add to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from asyncpg import Record

from scheduler.stores.postgres.connections import Connections, patiently
from scheduler.stores.postgres.statements import statement

FORGOTTEN = 500
"""Conversations in one transaction."""


class Taken(NamedTuple):
    """An attempt to hold a session: the turns kept so far if it did; until when somebody else does if not."""

    held: bool
    turns: int
    until: int


class Conversations:
    """The sessions of one database. Every call but `prune` and `forget` rides out a lost connection."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def begin(
        self, session: str, tenant: str, name: str, person: str | None, metadata: Mapping[str, Any]
    ) -> None:
        """Begin a session, unless the tenant has one of that name."""
        await self._execute("begin_session", session, tenant, name, person, json.dumps(dict(metadata)))

    async def find(self, session: str) -> Record | None:
        """A session by its id."""
        return await self._row("find_session", session)

    async def named(self, tenant: str, name: str) -> Record | None:
        """A tenant's session by its name."""
        return await self._row("named_session", tenant, name)

    async def take(self, session: str, holder: str, lease: int) -> Taken | None:
        """Hold a session for `lease` nanoseconds, if nobody else does. None if there is no such session."""
        row = await self._row("take_session", session, holder, lease)
        return None if row is None else Taken(row["held"], row["turns"], row["lease"] or row["now"])

    async def history(self, session: str) -> list[dict[str, Any]]:
        """All that was said, in order."""

        async def once() -> list[Record]:
            async with self._connections.connection() as connection:
                return list(await connection.fetch(statement("history"), session))

        return [message for row in await patiently(once) for message in json.loads(row["messages"])]

    async def hold(self, holders: Mapping[str, str], lease: int) -> None:
        """Renew the leases of those sessions that these still hold."""
        async with self._connections.connection() as connection:
            await connection.execute(statement("hold_sessions"), list(holders), list(holders.values()), lease)

    async def say(
        self, session: str, holder: str, number: int, messages: Iterable[dict[str, Any]]
    ) -> bool | None:
        """Keep a turn. False if its holder lost the session to another one, None if there is none any more.

        It is written once however often it is tried: a turn that is there already, and whose holder has not
        changed, was written by a try whose answer was lost.
        """
        row = await self._row("say", session, holder, number, json.dumps(list(messages)))
        return None if row is None else bool(row["held"])

    async def leave(self, session: str, holder: str) -> None:
        """End a turn, if it is held still."""
        await self._execute("leave_session", session, holder)

    async def end(self, session: str) -> None:
        """Forget a session, if there is one."""
        await self._execute("end_session", session)

    async def prune(self, before: int, most: int) -> int:
        """Forget sessions that nobody has used since `before`; how many."""
        async with self._connections.connection() as connection:
            done = await connection.execute(statement("prune_sessions"), before, most)
        return int(done.rpartition(" ")[2])

    async def forget(self, tenant: str) -> None:
        """Forget all sessions of a tenant."""
        while True:
            async with self._connections.connection() as connection:
                if not await connection.fetch(statement("forget_sessions"), tenant, FORGOTTEN):
                    return

    async def _row(self, name: str, *values: Any) -> Record | None:
        async def once() -> Record | None:
            async with self._connections.connection() as connection:
                row: Record | None = await connection.fetchrow(statement(name), *values)
                return row

        return await patiently(once)

    async def _execute(self, name: str, *values: Any) -> None:
        await self._row(name, *values)
