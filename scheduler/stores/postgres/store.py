"""`PostgresStore`: lines, buckets and results in PostgreSQL, shared by any number of processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic_ns
from typing import Any

from scheduler.core.account import Account, shape_of
from scheduler.core.policy import Outlook
from scheduler.core.quota import Quota, duration, instance, whole
from scheduler.stores.postgres import claiming, gates, gating, ladders, plain, quoting, rows, settling
from scheduler.stores.postgres.accepting import Accepting
from scheduler.stores.postgres.batches import Batches, fitting
from scheduler.stores.postgres.claiming import Claimed
from scheduler.stores.postgres.connections import LONGEST, SHORTEST, Connections, Unkept, patiently
from scheduler.stores.postgres.hearing import Hearing
from scheduler.stores.postgres.keeping import NUMBERS
from scheduler.stores.postgres.results import Results
from scheduler.stores.postgres.returning import Returning
from scheduler.stores.postgres.settlement import Ending
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import FAILED, Claim, Ended, Known, Outcome, Request

BATCH = 1000
"""Jobs in one transaction."""


NOT_KEPT = "not_kept"
"""The kind of failure of a job whose ending the database cannot keep."""


def _weight(ending: Ending) -> int:
    return len(ending.result or "") if isinstance(ending, Ended) else 0  # JSON, and so ASCII


class PostgresStore(Accepting):
    """Keeps tenants, lines and results in the database at `dsn`.

    `lease`: seconds after which a job is taken from a worker that does not renew it. `keep`: seconds for
    which results are kept, `keep_sessions` those for which an unused conversation is, for ever unless given.
    `connections`: the most that this process opens, beside one that listens; that one needs a session of its
    own, so a transaction pooler must be left out of its way.

    Use it as an async context manager, or hand it to a `Scheduler` or `Worker`, which enter it themselves; it
    counts how often it was entered. The schema is brought up to date when it is first entered if `migrate`.
    """

    def __init__(
        self,
        dsn: str,
        *,
        lease: float = 30.0,
        keep: float = 86_400.0,
        keep_sessions: float | None = None,
        connections: int = 4,
        migrate: bool = True,
    ) -> None:
        opened = Connections(instance("dsn", dsn, str), whole("connections", connections, 1))
        super().__init__(opened, migrate, keep, keep_sessions)
        self.lease_ns = duration("lease", lease)
        self._endings: Batches[Ending, bool] = Batches(self.record, BATCH)
        self._claims = plain.Guess()
        self._results = Results(self._connections)
        self.hearing = Hearing(self, self._connections)
        self.home = Returning(self, self._connections, self.lease_ns, self._endings, self.hearing)
        self.on_due: list[Callable[[int], None]] = [self.home.look]
        self.on_deferred: list[Callable[[], None]] = []
        self.on_stop: list[Callable[[int], None]] = []
        self.on_session: list[Callable[[str | None], None]] = []

    # --- jobs -----------------------------------------------------------------------------------------------

    async def claim(self, worker: str, slots: int) -> Claimed | None:
        """Grant at most `slots` jobs to a worker; None if nothing was due."""
        if self.hearing.gates:
            async with self._connections.transaction() as connection:
                claimed = await gating.claim(connection, worker, slots, self.about(), self.lease_ns)
            if claimed is not None and (claimed.claims or claimed.more):
                return claimed
        if self._claims.may_be_plain():
            done = False
            with suppress(Unkept):  # a time that is too far away for the database's arithmetic
                async with self._connections.connection() as connection:
                    done, claimed = await plain.claim(connection, worker, slots, self.about(), self.lease_ns)
            self._claims.note(plain=done)
            if done:
                return claimed
        async with self._connections.transaction() as connection:
            locked = await claiming.lock_gates(connection) if self.hearing.gates else None
            return await claiming.claim(connection, worker, slots, self.about(), self.lease_ns, locked)

    async def claim_deferred(self, worker: str, most: int) -> list[Claim]:
        """Take at most so many deferred jobs that nobody has, as soon as the database can be reached."""

        async def claim() -> list[Claim] | None:
            async with self._connections.connection() as connection:
                return await ladders.claim(connection, worker, most, self.lease_ns)

        pause = SHORTEST
        while (claims := await patiently(claim)) is None:  # and nobody tells when they have done with them
            await asyncio.sleep(pause)
            pause = min(LONGEST, 2 * pause)
        return claims

    async def settle(self, ending: Ending) -> bool:
        """See `record`; with others that come while a batch is under way."""
        return await self._endings.do(ending, self.group)

    async def record(self, endings: Sequence[Ending]) -> Sequence[bool]:
        """Record how tries ended. False for one that no longer held its job: then nothing of it is recorded.

        A lost connection is ridden out: the record is fenced, so writing it twice does no harm. Results go in
        as many transactions as messages that they fit in. A job whose ending cannot be kept has failed.
        """
        held: list[bool] = []
        while len(held) < len(endings):
            part = endings[len(held) :]
            held += await self._record(part[: fitting(map(_weight, part), BATCH)])
        return held

    async def _record(self, endings: Sequence[Ending]) -> Sequence[bool]:
        try:
            return await patiently(partial(self._settle, endings))
        except Unkept:
            if len(endings) > 1:
                return [held for ending in endings for held in await self._record([ending])]
            ((job, tenant, tries, *_),) = endings
            return await patiently(partial(self._settle, [Ended(job, tenant, tries, FAILED, kind=NOT_KEPT)]))

    async def _settle(self, endings: Sequence[Ending]) -> Sequence[bool]:
        if not self.hearing.gates:
            held = None
            with suppress(Unkept):  # or what is too large for the database's arithmetic
                async with self._connections.connection() as connection:
                    held = await plain.settle(connection, endings)
            if held is not None:
                return held
        async with self._connections.transaction() as connection:
            return await settling.settle(connection, endings)

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

    async def rescue(self, max_attempts: int | None, most: int = 100) -> int:
        """Take over what dead processes held, and end what waited past its deadline.

        `max_attempts` None: but for the jobs of dead workers.
        """
        async with self._connections.transaction() as connection:
            rescued = await settling.rescue(connection, self.about(), max_attempts, most)
        return rescued + await self.hearing.look_at_ladders()

    async def next(self) -> tuple[int | None, int | None]:
        """When the next job is due, and when the next lease or deadline ends, by the database's clock."""
        async with self._connections.connection() as connection:
            asked = monotonic_ns()
            (row,) = await connection.fetch(statement("next"))
        self._noted(row["now"], asked)
        ends = [row[name] for name in ("lease", "deadline") if row[name] is not None]
        return row["due"], min(ends, default=None)

    # --- tenants --------------------------------------------------------------------------------------------

    async def set_quota(self, tenant: str, quota: Quota, first: Quota) -> None:
        """Change a tenant's limits with its jobs waiting; `first`: what it has had if it was never seen."""
        async with self._connections.transaction() as connection:
            await settling.set_quota(connection, tenant, quota, first)
        self.quotas.see(tenant, quota)

    async def quote(self, request: Request) -> tuple[Outlook, int]:
        """What a job could look forward to now, and the time. Locks nothing, leaves no trace."""
        async with self._connections.connection() as connection:
            return await quoting.quote(connection, request)

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

    async def see(self, request: Request) -> tuple[Account, int]:
        """A tenant's buckets and slots, and the time; those of the request's quota if it was never seen."""
        async with self._connections.connection() as connection:
            row = await connection.fetchrow(statement("see_tenant"), request.tenant)
        if row is None:
            return Account(shape_of(request.quota), 0), 0
        return rows.read_tenant(row).tenant(), row["now"]

    async def look(self, job: int, tenant: str) -> Known | None:
        """How a job stands; None if the tenant has none of that number."""
        if job not in NUMBERS:
            return None
        async with self._connections.connection() as connection:
            return await quoting.see(connection, job, tenant)

    def await_outcome(self, job: int, tenant: str | None = None) -> asyncio.Future[Outcome]:
        """What will become of a job. All who ask in this process share it: shield it from a cancellation.

        `tenant`: whose it is, if it is known to have been committed: then one that is gone was forgotten.
        """
        return self._results.of(job, self.group, tenant)

    async def _look_around(self) -> None:
        await self.hearing.look()

    # --- notifications --------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        heard = {
            "waitline_due": self._heard_due,
            "waitline_done": self._heard_done,
            "waitline_stop": self._heard_stop,
            "waitline_session": self._heard_session,
            "waitline_granted": self.home.heard,
            gates.CHANNEL: self._heard_gates,
            "waitline_deferred": self._heard_deferred,
        }
        await self._connections.listen(heard, self._caught_up)

    def _heard_due(self, text: str) -> None:
        for tell in self.on_due:
            tell(int(text))

    def _heard_stop(self, text: str) -> None:
        for tell in self.on_stop:
            tell(int(text))

    def _heard_session(self, text: str) -> None:
        for tell in self.on_session:
            tell(text)

    def _heard_deferred(self, _: str) -> None:
        for tell in self.on_deferred:
            tell()

    def _heard_gates(self, _: str) -> None:
        self.group.create_task(patiently(self.hearing.look))

    def _heard_done(self, text: str) -> None:
        jobs = [int(job) for job in text.split()]
        self._results.ended(jobs, self.group)
        self.home.over(jobs)

    async def _caught_up(self) -> None:
        """After a new connection: look for whatever was told meanwhile."""
        await self.hearing.look()
        await self._results.look_again()
        for tell in self.on_due:
            tell(0)
        self._heard_deferred("")
        for free in self.on_session:
            free(None)

    def _leave(self) -> None:
        self._results.close()
        self.home.close()
