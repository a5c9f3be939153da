"""`PostgresStore`: lines, buckets and results in PostgreSQL, shared by any number of processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic_ns
from types import TracebackType
from typing import Any, Self

from asyncpg import Connection

from scheduler.core.policy import Outlook
from scheduler.core.quota import NS, Quota, instance, positive, whole
from scheduler.stores.postgres import claiming, operations, plain, rows, settling, submitting
from scheduler.stores.postgres.batches import Batches
from scheduler.stores.postgres.claiming import Claimed
from scheduler.stores.postgres.connections import Connections, patiently
from scheduler.stores.postgres.migrate import migrate
from scheduler.stores.postgres.results import Results
from scheduler.stores.postgres.settling import Ending
from scheduler.stores.postgres.statements import statement
from scheduler.stores.postgres.submitting import Answer
from scheduler.stores.values import Accepted, Claim, Known, Outcome, Request

BATCH = 1000
"""Jobs in one transaction."""


class PostgresStore:
    """Keeps tenants, lines and results in the database at `dsn`.

    `lease`: seconds after which a job is taken from a worker that does not renew it. `keep`: seconds for
    which results are kept. `connections`: the most that this process opens, beside one that listens; that one
    needs a session of its own, so a transaction pooler must be left out of its way.

    Use it as an async context manager, or hand it to a `Scheduler` or `Worker`, which enter it themselves; it
    counts how often it was entered. The schema is brought up to date when it is first entered if `migrate`.
    """

    def __init__(
        self,
        dsn: str,
        *,
        lease: float = 30.0,
        keep: float = 86_400.0,
        connections: int = 4,
        migrate: bool = True,
    ) -> None:
        self.lease_ns = int(positive("lease", lease) * NS)
        self.keep_ns = int(positive("keep", keep) * NS)
        self._connections = Connections(instance("dsn", dsn, str), whole("connections", connections, 1))
        self._migrate = migrate
        self._entered = 0
        self._door = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None
        self._listener: asyncio.Task[None] | None = None
        self._submits: Batches[Request, Answer] = Batches(self._submit, BATCH, self._unwanted)
        self._endings: Batches[Ending, bool] = Batches(self._settle, BATCH)
        self._results = Results(self._connections)
        self._offset = 0
        self.on_due: list[Callable[[int], None]] = []
        self.on_stop: list[Callable[[int], None]] = []

    # --- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with self._door:
            if not self._entered:
                await self._open()
            self._entered += 1
        return self

    async def _open(self) -> None:
        await self._connections.open()
        try:
            if self._migrate:
                async with self._connections.connection() as connection:
                    await migrate(connection)
            await self.clock()
        except BaseException:
            await self._connections.close()
            raise
        self._group = await asyncio.TaskGroup().__aenter__()
        self._listener = self._group.create_task(self._listen())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._door:
            self._entered -= 1
            if self._entered or self._group is None:
                return
            if self._listener is not None:
                self._listener.cancel()
            self._results.close()
            try:
                await self._group.__aexit__(None, None, None)
            finally:
                self._group = None
                await self._connections.close()

    @property
    def group(self) -> asyncio.TaskGroup:
        """The tasks that live as long as the store is open."""
        if self._group is None:
            raise RuntimeError("the store is not open: use it in an `async with` block")
        return self._group

    # --- time -----------------------------------------------------------------------------------------------

    def about(self) -> int:
        """Roughly the database's time, in nanoseconds, without asking it."""
        return monotonic_ns() + self._offset

    def until(self, time: int) -> float:
        """Seconds from now to a time of the database's clock, at least 0."""
        return max(0, time - self.about()) / NS

    def _noted(self, now: int, asked: int) -> None:
        # From before the question: a guess that runs ahead finds what is due, one that lags behind does not.
        self._offset = now - asked

    async def clock(self) -> int:
        """The database's time."""
        async with self._connections.connection() as connection:
            asked = monotonic_ns()
            now = int(await connection.fetchval("select waitline.now_ns()"))
        self._noted(now, asked)
        return now

    # --- jobs -----------------------------------------------------------------------------------------------

    async def submit(self, request: Request) -> Accepted:
        """Commit a job, or raise the reason for which it was refused."""
        answer = await self._submits.do(request, self.group)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _unwanted(self, request: Request, answer: Answer) -> None:
        if isinstance(answer, Accepted) and answer.new:
            self.cancel_soon(answer.id, request.tenant)

    async def _submit(self, requests: Sequence[Request]) -> Sequence[Answer]:
        async with self._connections.connection() as connection:
            answers = await plain.submit(connection, requests)
        if answers is not None:
            return answers
        async with self._connections.transaction() as connection:
            return await submitting.submit(connection, requests)

    async def submit_in(self, connection: Connection, request: Request) -> Accepted:
        """Accept a job in the caller's own transaction, on whose commit it becomes real."""
        (answer,) = await submitting.submit(connection, [request])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def claim(self, worker: str, slots: int) -> Claimed | None:
        """Grant at most `slots` jobs to a worker; None if nothing was due."""
        async with self._connections.transaction() as connection:
            return await claiming.claim(connection, worker, slots, self.about(), self.lease_ns)

    async def settle(self, ending: Ending) -> bool:
        """Record how a try ended. False if it no longer held its job: then nothing of it is recorded.

        A lost connection is ridden out: the record is fenced, so writing it twice does no harm.
        """
        return await self._endings.do(ending, self.group)

    async def _settle(self, endings: Sequence[Ending]) -> Sequence[bool]:
        async def once() -> Sequence[bool]:
            async with self._connections.transaction() as connection:
                return await settling.settle(connection, endings)

        return await patiently(once)

    async def beat(self, claims: Iterable[Claim]) -> dict[int, bool]:
        """Renew leases: of those that still hold their job, whether somebody wants them stopped."""
        held = list(claims)
        async with self._connections.connection() as connection:
            found = await connection.fetch(
                statement("beat"),
                [claim.id for claim in held],
                [claim.tries for claim in held],
                self.lease_ns,
            )
        return {row["id"]: row["stop"] for row in found}

    async def rescue(self, max_attempts: int, most: int = 100) -> int:
        """Take over what dead workers held, and end what waited past its deadline."""
        async with self._connections.transaction() as connection:
            return await settling.rescue(connection, self.about(), max_attempts, most)

    async def cancel(self, job: int, tenant: str) -> int | None:
        """Cancel a waiting job, or have a running one stopped: its state before, None if it is over."""
        async with self._connections.transaction() as connection:
            return await settling.stop(connection, job, tenant)

    def cancel_soon(self, job: int, tenant: str) -> None:
        """Cancel a job for a caller that cannot wait, as soon as the database can be reached."""
        self.group.create_task(patiently(partial(self.cancel, job, tenant)))

    async def next(self) -> tuple[int | None, int | None]:
        """When the next job is due, and when the next lease or deadline ends, by the database's clock."""
        async with self._connections.connection() as connection:
            asked = monotonic_ns()
            (row,) = await connection.fetch(statement("next"))
        self._noted(row["now"], asked)
        ends = [row[name] for name in ("lease", "deadline") if row[name] is not None]
        return row["due"], min(ends, default=None)

    async def list_jobs(
        self, tenant: str | None, state: int | None, job: int | None, most: int
    ) -> list[dict[str, Any]]:
        """The newest jobs first: numbers, times and kinds, no prompts and no results."""
        async with self._connections.connection() as connection:
            return [dict(row) for row in await operations.list_jobs(connection, tenant, state, job, most)]

    async def revive(self, job: int) -> bool:
        """Let a job that failed or was cancelled wait again. False if there is no such job."""
        async with self._connections.transaction() as connection:
            return await operations.revive(connection, job)

    async def prune(self, most: int = 500) -> int:
        """Forget results that were kept long enough, at most so many; how many that were."""
        async with self._connections.connection() as connection:
            done = await connection.execute(statement("prune"), self.about() - self.keep_ns, most)
        return int(done.rpartition(" ")[2])

    # --- tenants --------------------------------------------------------------------------------------------

    async def set_quota(self, tenant: str, quota: Quota, first: Quota) -> None:
        """Change a tenant's limits with its jobs waiting; `first`: what it has had if it was never seen."""
        async with self._connections.transaction() as connection:
            await settling.set_quota(connection, tenant, quota, first)

    async def quote(self, request: Request) -> tuple[Outlook, int]:
        """What a job could look forward to now, and the time. Locks nothing, leaves no trace."""
        async with self._connections.connection() as connection:
            return await submitting.quote(connection, request)

    async def count(self, tenant: str | None) -> dict[str, Any]:
        """Numbers of jobs and tenants, of everything or of one tenant; its levels by name."""
        async with self._connections.connection() as connection:
            if tenant is None:
                (everything,) = await connection.fetch(statement("count"))
                return dict(everything)
            row = await connection.fetchrow(statement("see_tenant"), tenant)
        if row is None:
            return {"waiting": 0, "running": 0, "tenants": 0}
        state = rows.read_tenant(row)
        return {
            "waiting": state.waiting,
            "running": state.running,
            "tenants": 1,
            "levels": state.tenant().levels(row["now"]),
        }

    async def look(self, job: int, tenant: str) -> Known | None:
        """How a job stands; None if the tenant has none of that number."""
        async with self._connections.connection() as connection:
            row = await connection.fetchrow(statement("look"), job, tenant)
        return None if row is None else Known(*row)

    def await_outcome(self, job: int) -> asyncio.Future[Outcome]:
        """What will become of a job. All who ask in this process share it: shield it from a cancellation."""
        return self._results.of(job, self.group)

    # --- notifications --------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        heard = {
            "waitline_due": self._heard_due,
            "waitline_done": self._heard_done,
            "waitline_stop": self._heard_stop,
        }
        await self._connections.listen(heard, self._caught_up)

    def _heard_due(self, text: str) -> None:
        for tell in self.on_due:
            tell(int(text))

    def _heard_stop(self, text: str) -> None:
        for tell in self.on_stop:
            tell(int(text))

    def _heard_done(self, text: str) -> None:
        self._results.ended([int(job) for job in text.split()], self.group)

    async def _caught_up(self) -> None:
        """After a new connection: look for whatever was told meanwhile."""
        await self._results.look_again()
        for tell in self.on_due:
            tell(0)
