"""The background process: claims jobs from a store, runs a handler for each, and records how they ended."""

from __future__ import annotations

import asyncio
import secrets
import signal
from contextlib import suppress

from scheduler.core.agenda import Agenda
from scheduler.core.quota import NS, positive, whole
from scheduler.runtime.job import Handler
from scheduler.runtime.tries import Try
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import FIRST_PAUSE, LONGEST_PAUSE, LOST, SAFETY
from scheduler.stores.values import Again, Claim, Ended

PRUNING = 60.0
"""Seconds between looks for results that were kept long enough."""

LOOK = 1.0
"""Seconds after which a worker that never finds itself idle looks for leases and deadlines that are over."""

SHORTEST, LONGEST = 0.001, 0.032
"""Seconds to wait where all that is due is in another one's hands: doubled from the first to the longest."""

GIVE_UP = 3
"""Calls of `stop` after which nothing is waited for."""


class Worker:
    """Runs the jobs of a store with `handler`, at most `concurrency` at once.

    `max_attempts`: of a job whose handler raises `Retry` or whose worker is lost. `run_timeout`: seconds for
    every try. `name`: whose the leases are; made up unless given.
    """

    def __init__(
        self,
        handler: Handler,
        store: PostgresStore,
        *,
        concurrency: int = 64,
        max_attempts: int = 5,
        run_timeout: float = 600.0,
        name: str | None = None,
    ) -> None:
        if not callable(handler):
            raise TypeError(f"handler: must be an async callable, got {handler!r}")
        self._handler = handler
        self._store = store
        self._concurrency = whole("concurrency", concurrency, 1)
        self._max_attempts = whole("max_attempts", max_attempts, 1)
        self._run_timeout = float(positive("run_timeout", run_timeout))
        self.name = secrets.token_hex(8) if name is None else name
        self._tries: set[Try] = set()  # until they are recorded, so that their leases are renewed
        self._running = 0
        self._over: list[tuple[Try, Ended | Again]] = []
        self._limits: Agenda[tuple[float, int, str, Try]] = Agenda()
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._recordable = asyncio.Event()
        self._looked = 0.0
        self._stopping = 0
        self.done = 0

    # --- life -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The first call: claim no more, finish what runs. The second: cancel what runs, and give it back.

        The third: wait no longer for a database that is away; what is not recorded is left to its leases.
        """
        self._stopping += 1
        self._wake.set()
        if self._stopping > 1:
            for one in self._tries:
                one.interrupt("stopped")

    async def run(self) -> None:
        """Work until `stop` is called. SIGTERM and SIGINT call it, where the loop can handle signals."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
        async with self._store as store, asyncio.TaskGroup() as group:
            store.on_due.append(self._due)
            store.on_stop.append(self._asked_to_stop)
            besides = [group.create_task(work()) for work in (self._beat, self._prune, self._record)]
            try:
                await self._work(group)
                while self._tries and self._stopping < GIVE_UP:
                    await self._woken(None)
            finally:
                for task in (*besides, *(one.task for one in self._tries)):
                    task.cancel()
                if self._timer is not None:
                    self._timer.cancel()
                store.on_due.remove(self._due)
                store.on_stop.remove(self._asked_to_stop)
                for number in (signal.SIGTERM, signal.SIGINT):
                    with suppress(NotImplementedError, RuntimeError, ValueError):
                        loop.remove_signal_handler(number)

    def _due(self, _: int) -> None:
        self._wake.set()

    async def _woken(self, wait: float | None) -> None:
        """Return when something has happened since the last time, or after `wait` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._wake.wait()
        self._wake.clear()

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """Claim and start jobs until it is time to stop; wait for the next thing that happens in between."""
        pause, crowded = FIRST_PAUSE, SHORTEST
        while not self._stopping:
            self._wake.clear()
            try:
                wait, crowded = await self._claim(group, crowded)
                pause = FIRST_PAUSE
            except LOST:
                wait, pause = pause, min(LONGEST_PAUSE, 2 * pause)
            if wait:
                await self._woken(wait)

    async def _claim(self, group: asyncio.TaskGroup, crowded: float) -> tuple[float, float]:
        """Start what is due and there is room for; seconds until there may be more, unless woken before.

        `crowded`: seconds to wait where all that is due is in another one's hands, and what to wait then.
        """
        room = self._room
        claimed = await self._store.claim(self.name, room) if room else None
        for claim in claimed.claims if claimed is not None else ():
            self._start(claim, group)
        until_look = self._looked + LOOK - asyncio.get_running_loop().time()
        if until_look > 0 and (not room or (claimed is not None and claimed.more)):
            # More is due, or will be told when there is room for it.
            return (0.0 if self._room else until_look), SHORTEST
        wait = await self._next()
        if claimed is None and room and wait == 0:
            return crowded, min(LONGEST, 2 * crowded)
        return wait, SHORTEST

    @property
    def _room(self) -> int:
        """How many jobs more it can take; many that have ended and are not recorded yet count as well."""
        return min(self._concurrency - self._running, 2 * self._concurrency - len(self._tries))

    async def _next(self) -> float:
        """Seconds until something happens by itself, after rescuing what was due for that."""
        due, lost = await self._store.next()
        if lost is not None and self._store.until(lost) == 0.0:
            await self._store.rescue(self._max_attempts)
            due, lost = await self._store.next()
        self._looked = asyncio.get_running_loop().time()
        times = [time for time in (due if self._room else None, lost) if time is not None]
        return min([SAFETY, *(self._store.until(time) for time in times)])

    # --- leases ---------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Renew the leases of all that runs, three times in the length of one."""
        interval = self._store.lease_ns / NS / 3
        while True:
            await asyncio.sleep(interval)
            tries = list(self._tries)
            if not tries:
                continue
            with suppress(*LOST):
                held = await self._store.beat([one.claim for one in tries])
                for one in tries:
                    if one.claim.id not in held:
                        one.interrupt("lost")
                    elif held[one.claim.id]:
                        one.interrupt("cancelled")

    async def _prune(self) -> None:
        """Forget results that were kept long enough, a few at a time."""
        while True:
            with suppress(*LOST):
                while await self._store.prune():
                    pass
            await asyncio.sleep(PRUNING)

    def _asked_to_stop(self, job: int) -> None:
        for one in self._tries:
            if one.claim.id == job:
                one.interrupt("cancelled")

    # --- jobs -----------------------------------------------------------------------------------------------

    def _start(self, claim: Claim, group: asyncio.TaskGroup) -> None:
        if claim.tries > 1:  # an earlier try may still be under way here, with its lease lost unnoticed
            for other in self._tries:
                if other.claim.id == claim.id:
                    other.interrupt("lost")
        one = Try(claim)
        self._tries.add(one)
        self._running += 1
        self._limit(one)
        one.task = group.create_task(self._perform(one))

    async def _perform(self, one: Try) -> None:
        """Run one try, and have it recorded how it ended. Its slot is free for another job meanwhile."""
        ending = None
        try:
            ending = await one.run(self._handler, self._store, self._max_attempts)
        finally:
            one.over = True
            self._running -= 1
            if one.placed is not None:
                self._limits.drop(one)
            self._wake.set()
            if ending is None:
                self._tries.discard(one)
            else:
                self._over.append((one, ending))
                self._recordable.set()

    async def _record(self) -> None:
        """Record how tries ended: all that have ended while the ones before were recorded at once."""
        while True:
            await self._recordable.wait()
            self._recordable.clear()
            over, self._over = self._over, []
            held = await self._store.record([ending for _, ending in over])
            self.done += sum(held)
            self._tries.difference_update(one for one, _ in over)
            self._wake.set()

    # --- limits of time -------------------------------------------------------------------------------------

    def _limit(self, one: Try) -> None:
        """Have a try interrupted when its time is over: one timer for all of them."""
        limit, which, claim = self._run_timeout, "run_timeout", one.claim
        if claim.deadline is not None and self._store.until(claim.deadline) <= limit:
            limit, which = self._store.until(claim.deadline), "timeout"
        end = asyncio.get_running_loop().time() + limit
        self._limits.put((end, claim.id, which, one))
        if self._timer is None or end < self._timer.when():
            self._arm(end)

    def _arm(self, end: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(end, self._time_over)

    def _time_over(self) -> None:
        self._timer, now = None, asyncio.get_running_loop().time()
        while (first := self._limits.first()) is not None:
            end, _, which, one = first
            if end > now:
                self._arm(end)
                return
            self._limits.pop()
            one.interrupt(which)
