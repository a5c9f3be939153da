"""Results: a process that waits for jobs hears when they are over, and fetches what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from asyncpg import Record

from scheduler.errors import SchedulerClosed
from scheduler.stores.postgres.batches import Batches
from scheduler.stores.postgres.connections import LOST, SAFETY, Connections, patiently
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import CANCELLED, RUNNING, WAITING, Outcome

MOST = 1000
"""Jobs looked for in one statement."""


class Results:
    """The jobs that somebody in this process waits for."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._awaited: dict[int, asyncio.Future[Outcome]] = {}
        self._tenants: dict[int, str] = {}
        self._looks: Batches[int, None] = Batches(self._look, MOST)

    def close(self) -> None:
        """Nobody hears anything any more. Whoever waits still is told so; their jobs stay."""
        for future in self._awaited.values():
            if not future.done():
                future.set_exception(SchedulerClosed("the store was closed while the call waited"))
                future.exception()  # looked at, also where nobody waits any more
        self._awaited.clear()
        self._tenants.clear()

    def of(self, job: int, group: asyncio.TaskGroup, tenant: str | None = None) -> asyncio.Future[Outcome]:
        """What will become of a job. `tenant`: whose it is, if it is known to have been committed."""
        if tenant is not None:
            self._tenants[job] = tenant
        future = self._awaited.get(job)
        if future is None:
            future = self._awaited[job] = asyncio.get_running_loop().create_future()
            group.create_task(self._watch(job, group))
        return future

    def ended(self, jobs: Sequence[int], group: asyncio.TaskGroup) -> None:
        """Somebody told that these jobs are over, wherever they were submitted."""
        ours = [job for job in jobs if job in self._awaited]
        if ours:
            group.create_task(patiently(partial(self._fetch, ours)))

    async def look_again(self) -> None:
        """Look for all of them: notifications may have been lost."""
        if self._awaited:
            await self._fetch(list(self._awaited))

    async def _watch(self, job: int, group: asyncio.TaskGroup) -> None:
        """Look at once, for a job that ended before anybody asked, and then now and again."""
        while (future := self._awaited.get(job)) is not None:
            with suppress(*LOST):
                await self._looks.do(job, group)
            await asyncio.wait([future], timeout=SAFETY)

    async def _look(self, jobs: Sequence[int]) -> Sequence[None]:
        await self._fetch(jobs)
        return [None] * len(jobs)

    async def _fetch(self, jobs: Sequence[int]) -> None:
        """Answer those who wait for these jobs, if they are over."""
        async with self._connections.connection() as connection:
            found = await connection.fetch(statement("outcomes"), jobs)
        outcomes = {row["id"]: Outcome(*row) for row in found}
        for job in jobs:
            outcome = outcomes.get(job) or self._gone(job)
            if outcome.state > RUNNING:
                self._tenants.pop(job, None)
                future = self._awaited.pop(job, None)
                if future is not None and not future.done():
                    future.set_result(outcome)

    def _gone(self, job: int) -> Outcome:
        """A job that is not there: its result was pruned or forgotten, unless it is yet to be committed."""
        tenant = self._tenants.get(job)
        if tenant is None:
            return Outcome(job, "", WAITING, None, None, 0, 0.0)
        return Outcome(job, tenant, CANCELLED, None, "forgotten", 0, 0.0)


def outcome_of(caller: int, tenant: str, row: Record | None) -> Outcome:
    """What became of a caller that runs its own work, by its row; without one somebody cancelled it."""
    if row is None:
        return Outcome(caller, tenant, CANCELLED, None, "cancelled", 0, 0.0)
    return Outcome(caller, tenant, row["state"], row["result"], row["kind"], 0, row["seconds"])
