"""What is kept and for how long, and what a person asks of a store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from scheduler.configuration import Applied, Configuration
from scheduler.core.quota import WORD, duration
from scheduler.stores.postgres import configuring, forgetting, ladders, operations
from scheduler.stores.postgres.batches import Batches
from scheduler.stores.postgres.connections import Connections, patiently
from scheduler.stores.postgres.conversations import Conversations
from scheduler.stores.postgres.opened import Opened
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import Claim, Memory

NUMBERS = range(1, WORD)
"""What the number of a job may be: of any other there is none, and the database does not take it."""

MEMORIES = 1000
"""What so many jobs remember goes in one statement."""


class Keeping(Opened):
    """The store of what has been: results and conversations until they are pruned or forgotten."""

    def __init__(
        self, connections: Connections, migrate: bool, keep: float, keep_sessions: float | None
    ) -> None:
        super().__init__(connections, migrate)
        self.keep_ns = duration("keep", keep)
        self.keep_sessions_ns = None if keep_sessions is None else duration("keep_sessions", keep_sessions)
        self.conversations = Conversations(connections)
        self._memories: Batches[Memory, bool] = Batches(self._remember, MEMORIES)

    async def remember(self, claim: Claim, text: str) -> bool:
        """Keep a text for the later tries of a deferred job. False if this try does not hold it any more.

        With others that come while a batch is under way. A lost connection is ridden out.
        """
        return await self._memories.do(Memory(claim.id, claim.tries, text), self.group)

    async def _remember(self, memories: Sequence[Memory]) -> Sequence[bool]:
        return await patiently(partial(self._write_memories, memories))

    async def _write_memories(self, memories: Sequence[Memory]) -> Sequence[bool]:
        async with self._connections.connection() as connection:
            return await ladders.remember(connection, memories)

    async def list_jobs(
        self, tenant: str | None, state: int | None, job: int | None, most: int
    ) -> list[dict[str, Any]]:
        """The newest jobs first: numbers, times and kinds, no prompts and no results."""
        if job is not None and job not in NUMBERS:
            return []
        async with self._connections.connection() as connection:
            return [dict(row) for row in await operations.list_jobs(connection, tenant, state, job, most)]

    async def revive(self, job: int) -> bool:
        """Let a job that failed or was cancelled wait again. False if there is no such job."""
        if job not in NUMBERS:
            return False
        async with self._connections.transaction() as connection:
            return await operations.revive(connection, job)

    async def prune(self, most: int = 500) -> int:
        """Forget what was kept long enough, at most so many results and conversations; how many that were."""
        about = self.about()
        async with self._connections.connection() as connection:
            done = await connection.execute(statement("prune"), about - self.keep_ns, most)
            pruned = int(done.rpartition(" ")[2])
        if self.keep_sessions_ns is not None:
            pruned += await self.conversations.prune(about - self.keep_sessions_ns, most)
        async with self._connections.transaction() as connection:
            idle, later = await forgetting.idle_tenants(connection, about, self.keep_ns)
        for state in idle:
            async with self._connections.transaction() as connection:
                pruned += await forgetting.drop_tenant(connection, state, later)
        return pruned

    async def forget(self, tenant: str) -> None:
        """Delete a tenant's prompts, results and conversations, cancel what waits, and stop what runs.

        A few hundred jobs to a transaction, and repeated from the start it does no harm. What it costs is a
        walk over the table of jobs.
        """
        async with self._connections.connection() as connection:
            last = await connection.fetchval("select last_value from waitline.job_number")
        after: int | None = 0
        while after is not None:
            async with self._connections.transaction() as connection:
                after = await forgetting.forget_jobs(connection, tenant, after, last)
        await self.conversations.forget(tenant)
        async with self._connections.transaction() as connection:
            await forgetting.mark(connection, tenant)

    # --- configuration --------------------------------------------------------------------------------------

    async def apply(self, configuration: Configuration) -> Applied:
        """Let a configuration count from now on, unless a newer one does, and bring tenants in line with it.

        The first transaction decides: from then on it counts for every tenant that is seen for the first
        time. Those that are known follow in batches, each of which does nothing where nothing has to change:
        after a failure the same call goes on. Raises ValueError for another content under the version that
        counts.
        """
        async with self._connections.transaction() as connection:
            found = await configuring.decide(connection, configuration)
        if found > configuration.version:
            return Applied(found, changed=0)
        changed, after = 0, ""
        while True:
            async with self._connections.transaction() as connection:
                after, some = await configuring.follow(connection, after)
            changed += some
            if not after:
                return Applied(configuration.version, changed)

    async def limits(self, tenant: str | None, most: int) -> list[dict[str, Any]]:
        """Quotas of tenants by name, and where they come from; of one tenant, or of the first so many."""
        async with self._connections.connection() as connection:
            return await configuring.limits(connection, tenant, most)
