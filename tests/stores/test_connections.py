"""The store's connections: so many at most, used again, and never in a state that somebody left them in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from scheduler.stores.postgres import connections as module
from scheduler.stores.postgres.connections import Connections
from scheduler.stores.values import Unreached


@pytest.fixture
async def two(dsn: str) -> AsyncIterator[Connections]:
    """At most two connections."""
    found = Connections(dsn, 2)
    await found.open()
    yield found
    await found.close()


async def process(connections: Connections) -> int:
    """The server's process behind the connection that is used next."""
    async with connections.connection() as connection:
        return int(await connection.fetchval("select pg_backend_pid()"))


async def test_one_is_used_again_and_there_are_no_more_than_allowed(two: Connections) -> None:
    assert await process(two) == await process(two)
    busy = most = 0

    async def use() -> int:
        nonlocal busy, most
        async with two.connection() as connection:
            busy += 1
            most = max(most, busy)
            await connection.execute("select pg_sleep(0.001)")
            busy -= 1
            return int(await connection.fetchval("select pg_backend_pid()"))

    assert len(set(await asyncio.gather(*(use() for _ in range(20))))) == most == 2


async def test_an_error_leaves_it_as_it_was(two: Connections) -> None:
    first = await process(two)
    with pytest.raises(asyncpg.UndefinedTableError):
        async with two.transaction() as connection:
            await connection.execute("select from nothing")
    assert await process(two) == first


async def test_one_with_a_transaction_that_nobody_ended_is_closed(two: Connections) -> None:
    first = await process(two)
    async with two.connection() as connection:
        await connection.execute("begin")
    assert await process(two) != first


async def test_what_is_cancelled_is_over_before_it_is_used_again(two: Connections) -> None:
    began = asyncio.Event()

    async def endless() -> None:
        async with two.connection() as connection:
            began.set()
            await connection.execute("select pg_sleep(1000)")

    first = await process(two)
    call = asyncio.create_task(endless())
    await began.wait()
    async with two.connection() as other:
        running = "select count(*) from pg_stat_activity where query like '%pg_sleep(1000)' and datname = current_database()"
        while not await other.fetchval(running):
            pass
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await process(two) == first
        assert await other.fetchval(running) == 0


async def test_one_that_was_not_used_for_long_is_replaced(
    two: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await process(two)
    monkeypatch.setattr(module, "IDLE", 0.0)
    assert await process(two) != first


async def test_a_standby_is_left(two: Connections) -> None:
    first = await process(two)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with two.connection() as connection:
            await connection.execute("begin read only; create table nothing ()")
    assert await process(two) != first


async def test_closing_waits_for_what_is_under_way_but_not_for_ever(
    two: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE", 0.05)
    began = asyncio.Event()

    async def use(seconds: float) -> None:
        async with two.connection() as connection:
            began.set()
            await connection.execute(f"select pg_sleep({seconds})")

    call = asyncio.create_task(use(1000))
    await began.wait()
    await two.close()
    with pytest.raises(module.LOST):
        await call
    with pytest.raises(RuntimeError, match="the store is not open"):
        await process(two)


async def test_no_connection_to_be_had(dsn: str) -> None:
    nowhere = Connections(dsn.replace("host=", "host=/nowhere"), 1)
    await nowhere.open()
    for _ in range(3):  # the place that it would have had is free again
        with pytest.raises(Unreached):
            await process(nowhere)
    await nowhere.close()
