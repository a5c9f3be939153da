"""PostgreSQL servers for tests: started once in a process when a test first asks, stopped when pytest ends.

A `conftest.py` imports the fixtures `server`, `dsn` (a database with the schema) and `empty_dsn` (without).
A test that takes one of them runs on each server, with a new database every time.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from scheduler.stores.postgres.embedded import Embedded
from scheduler.stores.postgres.migrate import migrate

DEBIAN = Path("/usr/lib/postgresql/15/bin")
ASKED = os.environ.get("WAITLINE_TEST_SERVERS", "18 15").split()
SERVERS = {version: binaries for version, binaries in {"18": None, "15": DEBIAN}.items() if version in ASKED}
"""By version, of those that are asked for: the folder of the programs. None: the wheel's."""

FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "60",
    "max_wal_size": "128MB",
}
"""What is committed survives no loss of power, and the last moment before a killed server not always."""

MEMORY, ENOUGH = Path("/dev/shm"), 2**30
"""A database is 300 files: where files are made in memory it is there in 10 ms instead of 250."""

TEMPLATE = "waitline_template"


class Server:
    """A running server that makes databases."""

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded
        self._numbers = count(1)
        self._has_template = False

    def dsn(self, database: str) -> str:
        """Where a database is."""
        return self.embedded.dsn.replace("/postgres?", f"/{database}?")

    @asynccontextmanager
    async def database(self, *, migrated: bool) -> AsyncIterator[str]:
        """Make a database and give its DSN; drop it at the end, whoever is still connected."""
        name = f"test_{next(self._numbers)}"
        if migrated and not self._has_template:
            await self._make_template()
        await self._execute(f"create database {name} template {TEMPLATE if migrated else 'template0'}")
        try:
            yield self.dsn(name)
        finally:
            await self._execute(f"drop database {name} with (force)")

    async def _make_template(self) -> None:
        await self._execute(f"create database {TEMPLATE}")
        connection = await asyncpg.connect(self.dsn(TEMPLATE))
        await migrate(connection)
        await connection.close()
        self._has_template = True

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.embedded.dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def roomy_memory() -> Path | None:
    """Return a folder in memory; None for the usual folder if there is none, or only a small one."""
    usable = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    return MEMORY if usable and shutil.disk_usage(MEMORY).free > ENOUGH else None


RUNNING = pytest.StashKey[dict[str, Server]]()


def running(config: pytest.Config, version: str) -> Server:
    """Return the server of a version; start it the first time. Skip the test if it is not installed."""
    servers = config.stash.setdefault(RUNNING, {})
    if version not in servers:
        binaries = SERVERS[version]
        if binaries is not None and not binaries.is_dir():
            pytest.skip(f"PostgreSQL {version} is not installed")
        with ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="waitline-test-", dir=roomy_memory()))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            embedded = stack.enter_context(Embedded(folder, binaries=binaries, settings=FAST))
            servers[version] = Server(embedded)
            config.add_cleanup(stack.pop_all().close)
    return servers[version]


def kill(embedded: Embedded) -> None:
    """Kill a server as a crash would, without a chance to clean up. `start` brings it back."""
    os.kill(int((embedded.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    """Each server."""
    return running(request.config, request.param)


@pytest.fixture
async def dsn(server: Server) -> AsyncIterator[str]:
    """A new database that has the schema, on each server."""
    async with server.database(migrated=True) as found:
        yield found


@pytest.fixture
async def empty_dsn(server: Server) -> AsyncIterator[str]:
    """A new database with nothing in it, on each server."""
    async with server.database(migrated=False) as found:
        yield found
