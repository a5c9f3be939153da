"""Connections: a pool whose plans are pinned, and one connection that listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar, cast

import asyncpg

from scheduler.errors import SchedulerError
from scheduler.stores.values import Unreached

T = TypeVar("T")

PINNED = {
    # Queue tables are planned while they are empty, and a plan for an empty table is ruin on a full one.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # A plan costs what it reads. Otherwise, for a table that was counted while it held little, all plans cost
    # the same, and some of them walk over all of it. Such costs must not call for parallel workers.
    "cpu_tuple_cost": "10",
    "cpu_index_tuple_cost": "10",
    "max_parallel_workers_per_gather": "0",
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

REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
"""What does not pass: something that was told cannot be kept."""

SAFETY = 30.0
"""Seconds after which whoever waits for a notification looks for itself: it may have been lost."""

SHORTEST, LONGEST = 0.001, 0.032
"""Seconds to wait where all that is due is in another one's hands: doubled from the first to the longest."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
"""Seconds between tries to reach a server that is gone: doubled from the first to the longest."""


CONNECT = 5.0
"""Seconds to connect in. A server that is killed may leave connections behind that nobody ever answers."""


async def _leave_as_it_is(_: object) -> None:
    """Nothing here changes a session, and putting it back in order would be a round trip after each use."""


class Unkept(SchedulerError, ValueError):
    """A value that the database cannot keep was part of what it was told, none of which it has kept.

    It does not say which value: the database's own error shows all that came together, of whomever.
    """


@contextmanager
def discreet() -> Iterator[None]:
    """Have what cannot be kept told as `Unkept`, without what came together with it."""
    try:
        yield
    except REFUSED as error:
        why = type(error.__cause__ or error).__name__
        raise Unkept(f"the database cannot keep a value that it was given ({why})") from None


class Connections:
    """A pool of at most `most` connections to one database."""

    def __init__(self, dsn: str, most: int) -> None:
        self._dsn = dsn
        self._most = most
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Be ready to connect when it is needed."""
        self._pool = await asyncpg.create_pool(
            self._dsn,
            min_size=0,  # or it would log a traceback for each try to have one while the server is gone
            max_size=self._most,
            timeout=CONNECT,
            server_settings=PINNED,
            command_timeout=60.0,
            reset=_leave_as_it_is,
        )

    async def close(self) -> None:
        """Give all connections back."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                await asyncio.wait_for(pool.close(), 5.0)
            except TimeoutError:
                pool.terminate()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """A transaction on a connection of the pool."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the pool, each statement a transaction of its own."""
        pool = self._pool
        if pool is None:
            raise RuntimeError("the store is not open")
        try:
            try:
                connection = await pool.acquire()
            except LOST as error:
                raise Unreached(str(error) or type(error).__name__) from error
            try:
                with discreet():
                    yield cast("asyncpg.Connection", connection)  # a proxy with all its methods
            finally:
                await pool.release(connection)
        except asyncpg.ReadOnlySQLTransactionError:
            # The server is a standby by now: a new connection may find the new primary.
            await pool.expire_connections()
            raise

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
