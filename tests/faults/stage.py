"""A scenario's stage: a database of its own, processes, people who submit and wait, and the judgement."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from scheduler import ErrRateLimited, JobFailed, Scheduler, SchedulerClosed
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import LOST
from scheduler.stores.postgres.embedded import Embedded
from scheduler.stores.postgres.migrate import migrate
from tests.faults import audit
from tests.faults.processes import Process, Processes
from tests.faults.roles import Role, elsewhere, session_of

SETTINGS = {"fsync": "off", "max_connections": "200", "max_wal_size": "256MB"}
"""What is committed survives a killed server (a machine that stops is another matter)."""

MEMORY = Path("/dev/shm")

TEMPLATE = "faults_template"

DRAIN = 30.0
"""Seconds in which all that waits must be over at the end of a scenario."""


class Machine:
    """A PostgreSQL that can be killed, and databases in it."""

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded
        self._numbers = count(1)

    def dsn(self, database: str) -> str:
        return self.embedded.dsn.replace("/postgres?", f"/{database}?")

    async def database(self) -> str:
        """A new database with the schema and the witness."""
        connection = await asyncpg.connect(self.embedded.dsn)
        try:
            if not await connection.fetchval("select 1 from pg_database where datname = $1", TEMPLATE):
                await connection.execute(f"create database {TEMPLATE}")
                template = await asyncpg.connect(self.dsn(TEMPLATE))
                await migrate(template)
                await template.execute(audit.WITNESS.read_text())
                await template.close()
            name = f"faults_{next(self._numbers)}"
            await connection.execute(f"create database {name} template {TEMPLATE}")
        finally:
            await connection.close()
        return self.dsn(name)

    async def restart(self, pause: float) -> None:
        """Kill the server, and start it again after some seconds."""
        os.kill(int((self.embedded.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        await asyncio.sleep(pause)
        await asyncio.to_thread(self.embedded.start)


@contextmanager
def machine() -> Iterator[Machine]:
    """Start a server, and stop it."""
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="waitline-faults-", dir=memory))
    try:
        with Embedded(folder, settings=SETTINGS) as embedded:
            yield Machine(embedded)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Stage:
    """Processes around one database. `seed` and `title` are what a failure says, to be replayed."""

    def __init__(self, machine: Machine, dsn: str, folder: Path, processes: Processes, title: str) -> None:
        self.machine = machine
        self.dsn = dsn
        self.folder = folder
        self.title = title
        self.defaults: dict[str, Any] = {}
        self._processes = processes
        self._numbers = count(1)
        self._answers: dict[str, tuple[str, Any]] = {}
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self.scheduler: Scheduler

    # --- processes ------------------------------------------------------------------------------------------

    async def start(self, kind: str = "worker", **wishes: Any) -> Process:
        name = f"{kind}-{next(self._numbers)}"
        settings = {**self.defaults, **wishes}
        return await self._processes.start(
            Role(name=name, kind=kind, dsn=self.dsn, folder=str(self.folder), **settings)
        )

    @property
    def holders(self) -> list[Process]:
        """Those alive that may hold grants."""
        return [process for process in self._processes.alive if process.role.kind in {"worker", "caller"}]

    def kills(self) -> list[dict[str, Any]]:
        """Where processes killed themselves."""
        return audit.read_lines(self.folder / "kills")

    # --- people ---------------------------------------------------------------------------------------------

    def submit(self, tenant: str, key: str) -> None:
        """Have somebody submit, again if the answer is lost, and wait for the result."""
        self._waiting[key] = asyncio.create_task(self._ask(tenant, key))

    async def _ask(self, tenant: str, key: str) -> None:
        while True:
            try:
                session = session_of(key, bool(self.defaults.get("mixed")))
                result = await self.scheduler.submit(tenant, key, key=key, session=session)
                self._answers[key] = "done", result
                return
            except JobFailed as failed:
                self._answers[key] = "failed", failed.kind
                return
            except SchedulerClosed:
                return
            except (*LOST, ErrRateLimited):  # refused while the store is down: its policy refuses nobody
                await asyncio.sleep(0.05)

    def cancel(self, key: str) -> None:
        """Have somebody go away who waits."""
        self._waiting.pop(key).cancel()

    @property
    def unanswered(self) -> list[str]:
        return [key for key, task in self._waiting.items() if not task.done()]

    async def forget(self, tenant: str) -> None:
        """Forget a tenant, again from the start if the database goes away meanwhile."""
        while True:
            try:
                await self.scheduler.forget(tenant)
                return
            except LOST:
                await asyncio.sleep(0.05)

    # --- the database ---------------------------------------------------------------------------------------

    async def value(self, query: str, *arguments: Any) -> Any:
        """One value from the database, as soon as it answers."""
        while True:
            try:
                connection = await asyncpg.connect(self.dsn, server_settings={"application_name": "faults"})
                try:
                    return await connection.fetchval(query, *arguments)
                finally:
                    await connection.close()
            except LOST:
                await asyncio.sleep(0.05)

    async def cut(self, which: str = "true") -> int:
        """Terminate backends of the product; how many."""
        query = (
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            f" where datname = current_database() and application_name = 'waitline' and ({which})"
        )
        return int(await self.value(query))

    async def until(self, query: str, seconds: float = 10.0) -> None:
        """Wait until a query is true."""
        async with asyncio.timeout(seconds):
            while not await self.value(query):  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.02)

    # --- the end --------------------------------------------------------------------------------------------

    async def finish(
        self, *, worker: bool = True, cancelled: Sequence[str] = (), forgotten: Sequence[str] = ()
    ) -> audit.Evidence:
        """Let all that was accepted come to its end, and judge. `forgotten`: who is forgotten once more."""
        if worker:
            await self.start()
        try:
            await self.until("select not exists (select from waitline.job where state < 2)", DRAIN)
            if self._waiting:
                await asyncio.wait(self._waiting.values(), timeout=5.0)
        except TimeoutError:
            pass  # the judgement says what is missing
        for tenant in forgotten:
            await self.forget(tenant)
        most = self.defaults.get("max_attempts", 50)
        found = await audit.collect(self.dsn, self.folder, most, forgotten)
        found.answers, found.unanswered = dict(self._answers), self.unanswered
        found.cancelled = cancelled
        for task in self._waiting.values():
            task.cancel()
        wrong = audit.violations(found)
        if wrong:
            raise AssertionError("\n".join([f"{self.title}:", *wrong[:40], self.errors()]))
        return found

    def errors(self) -> str:
        """The last of what processes wrote that ended by an error."""
        return (self.folder / "errors").read_text()[-6000:]


@asynccontextmanager
async def stage(machine: Machine, title: str, *, seed: int = 0, **defaults: Any) -> AsyncIterator[Stage]:
    """Open a stage; `defaults` are of all its processes."""
    dsn = await machine.database()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        async with Processes(folder / "errors") as processes:
            built = Stage(machine, dsn, folder, processes, f"{title} (seed {seed})")
            built.defaults = {"seed": seed, **defaults}
            role = Role(name="", kind="", dsn=dsn, folder=name, **built.defaults)
            store = PostgresStore(dsn, migrate=False)
            async with Scheduler(
                store=store, quotas=role.quota, gates=role.gates, policy=role.policy, deferred=elsewhere
            ) as scheduler:
                built.scheduler = scheduler
                yield built
                await scheduler.aclose(drain=False)


def crowd(rng: random.Random, tenants: int, jobs: int, prefix: str = "") -> list[tuple[str, str]]:
    """(tenant, key) of jobs of several tenants, mixed."""
    owners = [f"t{number % tenants}" for number in range(jobs)]
    rng.shuffle(owners)
    return [(owner, f"{prefix}{number}") for number, owner in enumerate(owners)]
