"""A store's life: open while somebody uses it, with a rough idea of the database's time."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress
from functools import partial
from time import monotonic_ns
from types import TracebackType
from typing import Self

from scheduler.core.quota import NS, Quota
from scheduler.stores.postgres.connections import LOST, Connections, patiently
from scheduler.stores.postgres.migrate import migrate

STEP = NS
"""Nanoseconds by which a server's clock goes back before that is made up for."""

QUOTAS = 10_000
"""Tenants of which a process remembers the quota."""


class Quotas(dict[str, Quota]):
    """The quotas that were seen last, of the tenants that came last."""

    def see(self, tenant: str, quota: Quota) -> None:
        """Note the quota of a tenant."""
        if self.get(tenant) is quota:
            return
        self.pop(tenant, None)
        self[tenant] = quota
        if len(self) > QUOTAS:
            del self[next(iter(self))]


class Opened:
    """Connections, a task that listens and a task group, from the first time it is entered on."""

    def __init__(self, connections: Connections, migrate: bool) -> None:
        self._connections = connections
        self._migrate = migrate
        self._entered = 0
        self._door = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None
        self._listener: asyncio.Task[None] | None = None
        self._offset = 0
        self._least: int | None = None
        self._abandoned = False
        self.quotas = Quotas()

    # --- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with self._door:
            if not self._entered:
                await self._open()
            self._entered += 1
        return self

    async def _open(self) -> None:
        await self._connections.open()
        try:
            if self._migrate:
                async with self._connections.connection() as connection:
                    await migrate(connection)
            await self.clock()
            await self._look_around()
        except BaseException:
            await self._connections.close()
            raise
        self._group = await asyncio.TaskGroup().__aenter__()
        self._listener = self._group.create_task(self._listen())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._door:
            self._entered -= 1
            if self._entered or self._group is None:
                return
            if self._listener is not None:
                self._listener.cancel()
            self._leave()
            given_up = (asyncio.CancelledError, asyncio.CancelledError(), None)
            try:
                with suppress(asyncio.CancelledError) if self._abandoned else nullcontext():
                    await self._group.__aexit__(*(given_up if self._abandoned else (None, None, None)))
            finally:
                self._group = None
                await self._connections.close()

    def abandon(self) -> None:
        """Do not wait for a database that is away: what is not in it yet is left to its leases."""
        self._abandoned = True

    async def _look_around(self) -> None:
        """Learn what there is, before anybody asks for anything."""
        raise NotImplementedError

    async def _listen(self) -> None:
        """Hear what other processes tell, for ever."""
        raise NotImplementedError

    def _leave(self) -> None:
        """Tell those who wait that nothing is heard any more."""
        raise NotImplementedError

    @property
    def group(self) -> asyncio.TaskGroup:
        """The tasks that live as long as the store is open."""
        if self._group is None:
            raise RuntimeError("the store is not open: use it in an `async with` block")
        return self._group

    # --- time -----------------------------------------------------------------------------------------------

    def about(self) -> int:
        """Roughly the database's time, in nanoseconds, without asking it."""
        return monotonic_ns() + self._offset

    def until(self, time: int) -> float:
        """Seconds from now to a time of the database's clock, at least 0."""
        return max(0, time - self.about()) / NS

    def _noted(self, now: int, asked: int) -> None:
        # From before the question: a guess that runs ahead finds what is due, one that lags behind does not.
        self._offset, least, answered = now - asked, self._least, monotonic_ns()
        self._least = now - answered
        if least is not None and self._group is not None and least - self._offset > STEP:
            self._group.create_task(patiently(partial(self._catch_up, least)))

    async def _catch_up(self, least: int) -> None:
        """The server's clock went back, by this process's own: the time of the lines must not."""
        async with self._connections.connection() as connection:
            await connection.execute("select waitline.catch_up($1)", monotonic_ns() + least)
        await self.clock()

    async def clock(self) -> int:
        """The database's time."""
        async with self._connections.connection() as connection:
            asked = monotonic_ns()
            now = int(await connection.fetchval("select waitline.now_ns()"))
        self._noted(now, asked)
        return now

    @property
    def lost(self) -> tuple[type[Exception], ...]:
        """What is raised while the database is away for a while."""
        return LOST

    async def reach(self) -> None:
        """Raise unless the database can be reached, by a new connection, and written to."""
        asked = monotonic_ns()
        self._noted(await self._connections.reach(), asked)

    def last_quota(self, tenant: str) -> Quota | None:
        """The quota that the database had for a tenant when this process last saw it."""
        return self.quotas.get(tenant)
