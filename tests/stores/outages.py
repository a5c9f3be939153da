"""What the tests of outages share: a server of their own that is killed, and ears for news."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from scheduler import ErrRateLimited, News, Outage, Policy, Quota, Rate, Scheduler
from scheduler.core.signals import What
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.embedded import Embedded
from tests.stores.servers import FAST, Server, kill, roomy_memory

HOUR = Quota(Rate(1, per=3600, burst=8))
REFUSE = Outage.refuse(patience=0.3)
QUARTER = Outage.admit(0.25, patience=0.3)


class Mortal:
    """A database in a server that can be killed and started again."""

    def __init__(self, server: Server, dsn: str) -> None:
        self.dsn = dsn
        self._embedded = server.embedded

    def kill(self) -> None:
        """Kill the server; it is dead when this returns, or `start` might find it alive."""
        death = os.pidfd_open(int((self._embedded.data / "postmaster.pid").read_text().split()[0]))
        kill(self._embedded)
        select.select([death], [], [])
        os.close(death)

    async def start(self) -> None:
        await asyncio.to_thread(self._embedded.start)

    def freeze(self) -> list[int]:
        """Stop all of its processes, without their sockets being closed: they simply do not answer."""
        postmaster = int((self._embedded.data / "postmaster.pid").read_text().split()[0])
        found = [postmaster]
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:  # it has ended
                    continue
                if parent == postmaster:
                    found.append(int(entry.name))
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        return found

    def thaw(self, pids: list[int]) -> None:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def mortal_server() -> Iterator[Server]:
    """A server that keeps what is committed when it is killed."""
    with (
        tempfile.TemporaryDirectory(prefix="waitline-", dir=roomy_memory()) as folder,
        Embedded(Path(folder) / "pg", settings=FAST | {"synchronous_commit": "on"}) as embedded,
    ):
        yield Server(embedded)


@pytest.fixture
async def mortal(mortal_server: Server) -> AsyncIterator[Mortal]:
    """A new database in it; whatever a test leaves behind, the server runs again."""
    async with mortal_server.database(migrated=True) as dsn:
        found = Mortal(mortal_server, dsn)
        try:
            yield found
        finally:
            await found.start()


class Ears:
    """A listener that can be waited for."""

    def __init__(self) -> None:
        self.heard: list[News] = []
        self._new = asyncio.Event()

    def __call__(self, news: News) -> None:
        self.heard.append(news)
        self._new.set()

    async def until(self, what: What, times: int = 1) -> News:
        """Return the so-manieth news of a kind, as soon as it is there."""
        while len(found := [news for news in self.heard if news.what is what]) < times:
            self._new.clear()
            await self._new.wait()
        return found[times - 1]


@asynccontextmanager
async def watched(
    dsn: str, outage: Outage | None, quota: Quota = HOUR, **settings: Any
) -> AsyncIterator[tuple[Scheduler, Ears]]:
    """A process without a handler, and what it tells."""
    ears = Ears()
    policy = settings.pop("policy", Policy(max_wait=None))
    async with Scheduler(
        store=PostgresStore(dsn), quotas=quota, policy=policy, outage=outage, listener=ears, **settings
    ) as scheduler:
        yield scheduler, ears


async def fall(scheduler: Scheduler, ears: Ears, mortal: Mortal, times: int = 1) -> None:
    """Kill the server, and return when the scheduler knows."""
    mortal.kill()
    await known_down(scheduler)
    await ears.until(What.STORE_DOWN, times)


async def known_down(scheduler: Scheduler) -> None:
    """Ask until the scheduler knows: a backend may answer for a moment after its server was killed."""
    while (found := (await scheduler.statistics()).store) is None or found.down is None:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def rise(scheduler: Scheduler, ears: Ears, mortal: Mortal, times: int = 1) -> None:
    """Start the server again, and return when the scheduler has recorded all."""
    await mortal.start()
    await ears.until(What.STORE_BACK, times)
    await scheduler.statistics("acme")  # of a tenant it is asked when that is recorded


async def refused(scheduler: Scheduler, **wishes: Any) -> ErrRateLimited:
    """Ask for a turn, and return why it is refused."""
    with pytest.raises(ErrRateLimited) as found:
        await scheduler.admit("acme", **wishes).__aenter__()
    return found.value


async def level(scheduler: Scheduler) -> float:
    return (await scheduler.statistics("acme")).levels["requests"]
