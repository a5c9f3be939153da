"""Connections: some whose plans are pinned, and one that listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import asyncpg

from scheduler.stores.values import Unreached

T = TypeVar("T")

PINNED = {
    # Queue tables are planned while they are empty, and a plan for an empty table is ruin on a full one.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    # Whoever stands still with a lock in its hands must not stop its tenants for all others.
    "idle_in_transaction_session_timeout": "5s",
    "application_name": "waitline",
}

LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.TransactionRollbackError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InsufficientResourcesError,  # no room on the disk, no memory, too many connections
    asyncpg.ReadOnlySQLTransactionError,  # a standby that is not the primary yet
    asyncpg.InvalidCachedStatementError,  # the schema was migrated meanwhile
    asyncpg.InternalClientError,  # also of a connection that was told its end, and has not come to it yet
)
"""What passes: the connection or the server is gone for a while, or transactions were in each other's way."""

SAFETY = 30.0
"""Seconds after which whoever waits for a notification looks for itself: it may have been lost."""

SHORTEST, LONGEST = 0.001, 0.032
"""Seconds to wait where all that is due is in another one's hands: doubled from the first to the longest."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
"""Seconds between tries to reach a server that is gone: doubled from the first to the longest."""


CONNECT = 5.0
"""Seconds to connect in. A server that is killed may leave connections behind that nobody ever answers."""

CLOSE = 5.0
"""Seconds for what is under way when all connections are closed."""


IDLE = 300.0
"""Seconds after which an unused connection is not trusted: something on the way may have dropped it."""


class Connections:
    """At most `most` connections to one database. Nothing here changes a session, so none is ever reset.

    To take one and to give it back takes neither a task nor a round trip, as it does in a pool of asyncpg's:
    most of what is done here is one short statement.
    """

    def __init__(self, dsn: str, most: int) -> None:
        self._dsn = dsn
        self._most = most
        self._free: asyncio.Semaphore | None = None
        self._idle: list[tuple[asyncpg.Connection, float]] = []
        self._used: set[asyncpg.Connection] = set()

    async def open(self) -> None:
        """Be ready to connect when it is needed."""
        self._free = asyncio.Semaphore(self._most)

    async def close(self) -> None:
        """Close all connections; those that are in use get a few seconds to end what they do."""
        free, self._free = self._free, None
        if free is None:
            return
        with suppress(TimeoutError, *LOST):
            async with asyncio.timeout(CLOSE):
                for _ in range(self._most):
                    await free.acquire()
                for connection, _ in self._idle:
                    await connection.close()
        for connection in self._used:
            connection.terminate()
        self._drop_idle()

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop()[0].terminate()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """A transaction on one of the connections."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """One of the connections, each statement a transaction of its own."""
        free = self._free
        if free is None:
            raise RuntimeError("the store is not open")
        async with free:
            connection = self._last_used() or await self._connect()
            self._used.add(connection)
            try:
                yield connection
            except asyncio.CancelledError:
                # What it was doing is being cancelled too, which must be over before it is used again.
                await self._settle(connection)
                raise
            except asyncpg.ReadOnlySQLTransactionError:
                # The server is a standby by now: a new connection may find the new primary.
                connection.terminate()
                self._drop_idle()
                raise
            finally:
                self._used.discard(connection)
                self._give_back(connection)

    def _last_used(self) -> asyncpg.Connection | None:
        """The one that was used last, if it may be used again."""
        while self._idle:
            connection, since = self._idle.pop()
            if not connection.is_closed() and asyncio.get_running_loop().time() - since < IDLE:
                return connection
            connection.terminate()
        return None

    async def _connect(self) -> asyncpg.Connection:
        try:
            return await asyncpg.connect(
                self._dsn, timeout=CONNECT, server_settings=PINNED, command_timeout=60.0
            )
        except LOST as error:
            raise Unreached(str(error) or type(error).__name__) from error

    async def _settle(self, connection: asyncpg.Connection) -> None:
        try:
            async with asyncio.timeout(CONNECT):
                await connection.execute("select")
        except BaseException as error:
            connection.terminate()
            if not isinstance(error, Exception):
                raise

    def _give_back(self, connection: asyncpg.Connection) -> None:
        if connection.is_closed():
            return
        if connection.is_in_transaction() or self._free is None:
            connection.terminate()
        else:
            self._idle.append((connection, asyncio.get_running_loop().time()))

    async def reach(self) -> int:
        """The database's time, by a connection of its own. Raises unless it can be written to."""
        connection = await asyncpg.connect(self._dsn, server_settings=PINNED, timeout=CONNECT)
        try:
            if await connection.fetchval("select current_setting('transaction_read_only')::boolean"):
                raise asyncpg.ReadOnlySQLTransactionError("the server is a standby")
            return int(await connection.fetchval("select waitline.now_ns()"))
        finally:
            connection.terminate()

    async def listen(
        self, channels: Mapping[str, Callable[[str], None]], caught_up: Callable[[], Awaitable[None]]
    ) -> None:
        """Hear notifications for ever. `caught_up` runs after every new connection: what was told is lost."""
        pause = FIRST_PAUSE
        while True:
            try:
                connection = await asyncpg.connect(self._dsn, server_settings=PINNED, timeout=CONNECT)
            except LOST:
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, 2 * pause)
                continue
            try:
                gone = asyncio.Event()
                connection.add_termination_listener(lambda _, gone=gone: gone.set())
                for channel, hear in channels.items():
                    await connection.add_listener(channel, lambda *heard, hear=hear: hear(str(heard[-1])))
                await caught_up()
                pause = FIRST_PAUSE
                await gone.wait()
            except LOST:
                pass
            finally:
                connection.terminate()


async def patiently(work: Callable[[], Awaitable[T]], longest: float = LONGEST_PAUSE) -> T:
    """Do what may be done twice until the database can be reached: pauses double up to the longest."""
    pause = FIRST_PAUSE
    while True:
        try:
            return await work()
        except LOST:
            await asyncio.sleep(pause)
            pause = min(longest, 2 * pause)
