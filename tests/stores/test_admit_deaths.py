"""Processes that die, or lose the database, while they stand in line or hold a grant of `admit`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from scheduler import Quota, Rate
from scheduler.stores.postgres.embedded import Embedded
from tests.stores.callers import FAST_SLOT, rows, until, web
from tests.stores.servers import FAST, kill, roomy_memory
from tests.stores.working import working

ROOT = Path(__file__).resolve().parent.parent.parent

OTHER = """
import asyncio, sys
from scheduler import Policy, Quota, Rate, Scheduler
from scheduler.stores.postgres import PostgresStore

async def main(dsn):
    store = PostgresStore(dsn, lease=0.5, migrate=False)
    quota = Quota(Rate(1000, burst=100), concurrency=1)
    async with Scheduler(store=store, quotas=quota, policy=Policy(max_wait=None)) as scheduler:
        async with scheduler.admit("acme"):
            print("holds", flush=True)
            await asyncio.sleep(60)

asyncio.run(main(sys.argv[1]))
"""


WORKER = """
import asyncio, sys
from types import SimpleNamespace
from scheduler import Policy, Quota, Rate, Scheduler
from scheduler.stores.postgres import PostgresStore
from scheduler.worker import Worker

async def main(dsn):
    store = PostgresStore(dsn, lease=0.5, migrate=False)
    quota = Quota(Rate(1, per=3600, burst=1))

    async def handler(job):
        for _ in range(2):
            await scheduler.on_before_message(SimpleNamespace(tenant="acme"))

    async with Scheduler(store=store, quotas=quota, policy=Policy(max_wait=None)) as scheduler:
        await Worker(handler, store).run()

asyncio.run(main(sys.argv[1]))
"""


@asynccontextmanager
async def process(dsn: str, program: str = OTHER) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process: one that asks for a turn and keeps it, or another program."""
    found = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, dsn, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield found
    finally:
        if found.returncode is None:
            os.kill(found.pid, signal.SIGKILL)
        await found.wait()


async def die(found: asyncio.subprocess.Process) -> None:
    os.kill(found.pid, signal.SIGKILL)
    await found.wait()


async def test_a_process_that_dies_while_it_waits_leaves_the_line_within_its_lease(dsn: str) -> None:
    async with web(dsn, FAST_SLOT) as scheduler:
        async with scheduler.admit("acme") as grant, process(dsn) as other:
            await until(scheduler, waiting=1)
            async with asyncio.TaskGroup() as group:
                behind = group.create_task(scheduler.admit("acme").__aenter__())
                await until(scheduler, waiting=2)
                await die(other)
                await until(scheduler, waiting=1)
                grant.settle()
                (await behind).settle()
        await until(scheduler, waiting=0, running=0)


async def test_a_process_that_dies_while_it_holds_gives_its_slot_back_within_its_lease(dsn: str) -> None:
    async with web(dsn, FAST_SLOT) as scheduler, process(dsn) as other:
        assert other.stdout is not None
        assert await other.stdout.readline() == b"holds\n"
        async with asyncio.TaskGroup() as group:
            behind = group.create_task(scheduler.admit("acme").__aenter__())
            await until(scheduler, waiting=1)
            await die(other)
            (await behind).settle()
        await until(scheduler, waiting=0, running=0)
        assert await rows(dsn, "select kind from waitline.job where state = 3") == [("home_lost",)]


async def test_a_worker_that_dies_while_a_message_waits_leaves_neither_it_nor_the_run(dsn: str) -> None:
    """Another one runs the job again; the message that waited is gone when its lease is over."""
    hour = Quota(Rate(1, per=3600, burst=1))
    async with web(dsn, hour) as scheduler, process(dsn, WORKER) as other:
        await scheduler.enqueue("acme", "x")
        await until(scheduler, running=1, waiting=1)
        await die(other)
        async with working(dsn, max_attempts=1):
            await until(scheduler, running=0, waiting=0)
        ended = await rows(dsn, "select kind from waitline.job where state = 3 order by kind")
        assert ended == [("home_lost",), ("worker_lost",)]
        assert await rows(dsn, "select work from waitline.tenant") == [([0],)]


async def test_a_process_that_was_taken_for_dead_stands_in_line_again(dsn: str) -> None:
    async with (
        web(dsn, FAST_SLOT) as scheduler,
        scheduler.admit("acme") as grant,
        asyncio.TaskGroup() as group,
    ):
        behind = group.create_task(scheduler.admit("acme").__aenter__())
        await until(scheduler, waiting=1)
        await rows(dsn, "update waitline.job set lease = 0 where state = 0 returning 1")
        scheduler.store.home.look(0)  # type: ignore[attr-defined]
        while await rows(dsn, "select 1 from waitline.job where lease = 0"):
            pass
        await until(scheduler, waiting=1)
        grant.settle()
        (await behind).settle()


async def test_whoever_waits_rides_out_a_restart_of_the_database() -> None:
    settings = FAST | {"synchronous_commit": "on"}
    with (
        tempfile.TemporaryDirectory(prefix="waitline-", dir=roomy_memory()) as folder,
        Embedded(Path(folder) / "pg", settings=settings) as server,
    ):
        async with web(server.dsn, FAST_SLOT) as scheduler:
            grant = await scheduler.admit("acme").__aenter__()
            async with asyncio.TaskGroup() as group:
                behind = group.create_task(scheduler.admit("acme").__aenter__())
                await until(scheduler, waiting=1)
                kill(server)
                grant.settle()
                await asyncio.to_thread(server.start)
                (await behind).settle()
            await until(scheduler, waiting=0, running=0)
