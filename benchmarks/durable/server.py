"""A PostgreSQL of this process, with stock settings on a disk, and a fresh database for each measurement."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from itertools import count
from pathlib import Path

import asyncpg

from scheduler.stores.postgres.embedded import Embedded

NUMBERS = count(1)


@cache
def server() -> Embedded:
    """The server: started when a measurement first asks, stopped and removed when the process ends.

    Nothing is set but who may connect: `fsync` and `synchronous_commit` are on, the socket is a file.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="waitline-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        started = stack.enter_context(Embedded(folder))
        atexit.register(stack.pop_all().close)
    return started


async def execute(dsn: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def database() -> AsyncIterator[str]:
    """An empty database: its DSN. It is dropped at the end, whoever is still connected."""
    started, name = server(), f"bench_{next(NUMBERS)}"
    await execute(started.dsn, f"create database {name}")
    try:
        yield started.dsn.replace("/postgres?", f"/{name}?")
    finally:
        await execute(started.dsn, f"drop database {name} with (force)")
