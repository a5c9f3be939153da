"""Home: the callers of this process that run their own work, from their place in line to the end of it.

They stand in the lines of jobs as rows that name this process, with a lease that it renews while they wait
and while they run. Whoever claims grants them, also another process, which then tells; this one claims for
them too, so that no worker need be there. A notification is a hint: what it says is looked up when it is due.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from asyncpg import Connection, Record

from scheduler.core.quota import NS, Usage
from scheduler.errors import SchedulerClosed
from scheduler.stores.postgres import claiming, gating, settling, submitting
from scheduler.stores.postgres.batches import Batches
from scheduler.stores.postgres.claiming import Claimed
from scheduler.stores.postgres.connections import (
    FIRST_PAUSE,
    LONGEST,
    LONGEST_PAUSE,
    LOST,
    SAFETY,
    SHORTEST,
    Connections,
    patiently,
)
from scheduler.stores.postgres.dues import Dues
from scheduler.stores.postgres.hearing import Hearing
from scheduler.stores.postgres.leaving import Leaving
from scheduler.stores.postgres.opened import Opened
from scheduler.stores.postgres.results import outcome_of
from scheduler.stores.postgres.settlement import Ending
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import DONE, RUNNING, WAITING, Ended, Place, Request, Withdrawn

BATCH = 200
"""Callers that join in one transaction."""

Pairs = Sequence[tuple[int, int]]
"""(id, slot) of callers that were granted."""

Join = tuple[Request, asyncio.Future[None]]
Answer = Place | Exception


class Home(Leaving):
    """The callers of this process. Their rows bear its `name`."""

    def __init__(
        self,
        store: Opened,
        connections: Connections,
        lease_ns: int,
        endings: Batches[Ending, bool],
        hearing: Hearing,
    ) -> None:
        super().__init__(store)
        self.name = secrets.token_hex(8)
        self._connections = connections
        self._lease_ns = lease_ns
        self._endings = endings
        self._hearing = hearing
        self._joins: Batches[Join, Answer] = Batches(self._join, BATCH, self._unwanted)
        self._waiting: dict[int, Place] = {}
        self._held: dict[int, str] = {}
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._claiming = 0
        self._closed = False
        self._heard: list[tuple[int, int]] = []
        self._over: set[int] = set()
        self._dues = Dues()
        self._crowded = SHORTEST

    # --- in line --------------------------------------------------------------------------------------------

    async def join(self, request: Request, told: asyncio.Future[None]) -> Place:
        """Stand in line, or raise the reason for which that was refused. `told` hears of the grant."""
        request = request._replace(prompt=None, home=self.name, lease=self._lease_ns)
        self._closed = False  # or there would be no group
        answer = await self._joins.do((request, told), self._store.group)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _unwanted(self, _: Join, answer: Answer) -> None:
        if isinstance(answer, Place):
            self.give_back(answer.accepted.id, answer.tenant)

    async def _join(self, joins: Sequence[Join]) -> Sequence[Answer]:
        """Accept or refuse callers, and grant who can go at once: all in one transaction."""
        self._claiming += 1
        claimed: Claimed | None = None
        try:
            async with self._connections.transaction() as connection:
                requests = [request for request, _ in joins]
                answers = await submitting.submit(connection, requests, self._store.quotas)
                granted = await self._claim(connection, sorted({request.tenant for request in requests}))
            claimed = granted  # not before it is committed
            places: list[Answer] = [
                answer if isinstance(answer, Exception) else Place(answer, request.tenant, told)
                for (request, told), answer in zip(joins, answers, strict=True)
            ]
            self._waiting |= {place.accepted.id: place for place in places if isinstance(place, Place)}
            self._wake.set()  # a look that is under way does not know of them
            self.over(self._over)
            if self._closed:
                self.close()
            self._start("watch", self._watch)
            self._start("beat", self._beat)
            return places
        finally:
            self._claiming -= 1
            self._tell(() if claimed is None else claimed.callers)

    async def _claim(self, connection: Connection, tenants: Sequence[str]) -> Claimed | None:
        about, passed, locked = self._store.about(), None, None
        if self._hearing.gates:  # whose locks come before those of tenants
            passed = await gating.claim(connection, self.name, 0, about, self._lease_ns)
            locked = await claiming.lock_gates(connection)
        claimed = await claiming.claim_callers(connection, self.name, tenants, about, self._lease_ns, locked)
        if claimed is not None:
            self._dues.note(claimed.blocked)
        return passed if claimed is None else claimed.beside(passed)

    def give_back(self, caller: int, tenant: str) -> None:
        """A caller wants no more of it: it leaves its line, or gives back all that it was granted."""
        if self._waiting.pop(caller, None) is not None or self._held.pop(caller, None) is not None:
            self._end(tenant, patiently(partial(self._give_back, {caller: tenant})))

    async def _give_back(self, callers: dict[int, str]) -> None:
        async with self._connections.transaction() as connection:
            await settling.give_back(connection, callers)

    def settle(self, caller: int, tenant: str, usage: Usage | None) -> None:
        """A caller's work is over; it is recorded soon."""
        if self._held.pop(caller, None) is not None:
            self._end(tenant, self._settle(Ended(caller, tenant, 1, DONE, usage=usage)))

    async def _settle(self, ended: Ended) -> None:
        await self._hearing.noted()
        await self._endings.do(ended, self._store.group)
        if self._dues.blocked:  # what was given back may help whoever waits here
            self._wake.set()

    # --- grants ---------------------------------------------------------------------------------------------

    def heard(self, text: str) -> None:
        """Somebody else has granted some callers, perhaps of this process."""
        numbers = list(map(int, text.split()))
        self._heard += zip(numbers[::2], numbers[1::2], strict=True)
        if not self._claiming:
            self._tell(())

    def _tell(self, granted: Pairs) -> None:
        """Tell callers of their grants, in the order of their slots.

        While a transaction is under way here, those it has not made known yet are kept for its end.
        """
        told, self._heard = sorted([*granted, *self._heard], key=lambda pair: pair[::-1]), []
        for caller, slot in told:
            place = self._waiting.pop(caller, None)
            if place is not None:
                self._held[caller] = place.tenant
                place.slot = slot
                if not place.told.done():
                    place.told.set_result(None)
            elif self._claiming:
                self._heard.append((caller, slot))
        if not self._claiming:
            self._over.clear()

    def over(self, callers: Iterable[int]) -> None:
        """Somebody told that these jobs are over: if a caller that waits here is among them, look.

        It may be one that is about to learn that it waits here: that is kept for then.
        """
        if self._claiming:
            self._over.update(callers)
        if any(caller in self._waiting for caller in callers):
            self._wake.set()

    def look(self, _: int) -> None:
        """Something may be due sooner."""
        self._wake.set()

    # --- by itself ------------------------------------------------------------------------------------------

    def _start(self, name: str, work: Any) -> None:
        task = self._tasks.get(name)
        if (self._waiting or self._held) and (task is None or task.done()):
            self._tasks[name] = self._store.group.create_task(work())

    async def _watch(self) -> None:
        """While anybody waits: claim when it is due, and hear what nobody told."""
        pause = FIRST_PAUSE
        while self._waiting:
            self._wake.clear()
            try:
                wait = await self._look()
                pause = FIRST_PAUSE
            except LOST:
                wait, pause = pause, min(LONGEST_PAUSE, 2 * pause)
            if wait > 0 and self._waiting:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait)

    async def _look(self) -> float:
        """See how all who wait here stand, grant who is due; seconds until something happens by itself."""
        places = dict(self._waiting)
        tenants = sorted({place.tenant for place in places.values()})
        async with self._connections.connection() as connection:
            due = await connection.fetch(statement("home_due"), tenants)
            found = await connection.fetch(statement("home_jobs"), list(places))
        self._learn(places, {row["id"]: row for row in found})
        now, lost, times = due[0]["now"], due[0]["lost"], self._dues.times(due)
        if due[0]["gates"] is not None:
            times[""] = due[0]["gates"]
        if lost is not None and lost <= now:
            async with self._connections.transaction() as connection:
                await settling.rescue(connection, now, None, BATCH)
            return 0.0
        ready = [tenant for tenant, time in times.items() if time <= now]
        if ready and await self._grant(ready):
            self._crowded = SHORTEST
            return 0.0
        if ready:  # all of it is in another one's hands
            self._crowded = min(LONGEST, 2 * self._crowded)
            return self._crowded
        ends: list[int] = [*times.values(), *([] if lost is None else [lost])]
        return min(SAFETY, *((end - now) / NS for end in ends)) if ends else SAFETY

    async def _grant(self, tenants: Sequence[str]) -> bool:
        """Claim from tenants; whether that moved anybody."""
        self._claiming += 1
        claimed: Claimed | None = None
        try:
            async with self._connections.transaction() as connection:
                granted = await self._claim(connection, tenants)
            claimed = granted
            return claimed is not None and claimed.moved
        finally:
            self._claiming -= 1
            self._tell(() if claimed is None else claimed.callers)

    def _learn(self, places: dict[int, Place], found: dict[int, Record]) -> None:
        """Hear from the rows of callers what became of them; one without a row was cancelled by somebody."""
        self._tell([(row["id"], row["slot"]) for row in found.values() if row["state"] == RUNNING])
        for caller, place in places.items():
            row = found.get(caller)
            if row is not None and row["state"] <= RUNNING:
                continue
            if self._waiting.pop(caller, None) is not None:
                place.fail(Withdrawn(outcome_of(caller, place.tenant, row)))

    async def _beat(self) -> None:
        """Renew the leases of all who wait or run here, three times in the length of one."""
        while self._waiting or self._held:
            await asyncio.sleep(self._lease_ns / NS / 3)
            callers = [*self._waiting, *self._held]
            with suppress(*LOST):
                async with self._connections.connection() as connection:
                    found = await connection.fetch(statement("home_beat"), callers, self._lease_ns, self.name)
                still = {row["id"] for row in found if row["state"] == WAITING}
                if any(caller not in still for caller in self._waiting):
                    self._wake.set()

    def close(self) -> None:
        """Nobody hears anything any more: whoever waits is told so, and leaves the line."""
        self._closed = True
        gone = {caller: place.tenant for caller, place in self._waiting.items()}
        for place in self._waiting.values():
            place.fail(SchedulerClosed("the scheduler was closed while the call waited"))
        self._waiting.clear()
        for task in self._tasks.values():
            task.cancel()
        if gone:
            self._store.group.create_task(patiently(partial(self._give_back, gone)))
