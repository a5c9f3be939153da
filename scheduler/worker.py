"""The background process: claims jobs from a store, runs a handler for each, and records how they ended."""

from __future__ import annotations

import asyncio
import secrets
import signal
from contextlib import suppress
from typing import Any

from scheduler.core.quota import NS, positive, whole
from scheduler.runtime.arguments import check_name
from scheduler.runtime.deferring import Deferring
from scheduler.runtime.job import Handler
from scheduler.runtime.limits import Limits
from scheduler.runtime.tries import Try
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import FIRST_PAUSE, LONGEST, LONGEST_PAUSE, LOST, SAFETY, SHORTEST
from scheduler.stores.values import Again, Claim, Ended

PRUNING = 60.0
"""Seconds between looks for results that were kept long enough."""

OFTEN = 50_000_000
"""Nanoseconds after which a worker that claims asks again for leases and deadlines that have ended."""

GIVE_UP = 3
"""Calls of `stop` after which nothing is waited for."""


class Worker:
    """Runs the jobs of a store with `handler`, at most `concurrency` at once.

    `max_attempts`: of a job whose handler raises `Retry` or whose worker is lost. `run_timeout`: seconds for
    every try. `name`: whose the leases are; made up unless given. `deferred`: the handler of jobs that a rung
    of their ladder defers, of at most `max_deferred` at a time and for as long as they take; without one,
    and once it raises `SchedulerClosed`, they are left to other workers.
    """

    def __init__(
        self,
        handler: Handler,
        store: PostgresStore,
        *,
        concurrency: int = 256,
        max_attempts: int = 5,
        run_timeout: float = 600.0,
        name: str | None = None,
        deferred: Handler | None = None,
        max_deferred: int = 1000,
    ) -> None:
        if not callable(handler):
            raise TypeError(f"handler: must be an async callable, got {handler!r}")
        self._handler = handler
        self._store = store
        self._concurrency = whole("concurrency", concurrency, 1)
        self._max_attempts = whole("max_attempts", max_attempts, 1)
        self._run_timeout = float(positive("run_timeout", run_timeout))
        self.name = secrets.token_hex(8) if name is None else check_name("name", name)
        self._tries: set[Try] = set()  # until they are recorded, so that their leases are renewed
        self._running = 0
        self._over: list[tuple[Try, Ended | Again]] = []
        self._limits = Limits()
        self._wake = asyncio.Event()
        self._recordable = asyncio.Event()
        self._next_due: int | None = None  # what is known, in nanoseconds of the database's clock
        self._look_at = self._looked = 0
        self._crowded = SHORTEST
        self._deferring = Deferring(deferred, max_deferred)
        self._stopping = 0
        self._main: asyncio.Task[Any] | None = None
        self.done = 0

    # --- life -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The first call: claim no more, finish what runs. The second: cancel what runs, and give it back.

        What is deferred is given back at the first call: it may take a day.

        The third: wait no longer for a database that is away; what is not recorded is left to its leases.
        """
        self._stopping += 1
        self._wake.set()
        self._deferring.close()
        for one in self._tries:
            if self._stopping > 1 or one.deferred:
                one.interrupt("stopped")
        if self._stopping == GIVE_UP and self._main is not None:
            self._store.abandon()
            self._main.cancel()

    async def run(self, *, signals: bool = True) -> None:
        """Work until `stop` is called. SIGTERM and SIGINT call it, where the loop can handle signals.

        `signals` False leaves these to the process that it is a part of.
        """
        loop = asyncio.get_running_loop()
        handled = (signal.SIGTERM, signal.SIGINT) if signals else ()
        for number in handled:
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
        self._main = asyncio.current_task()
        try:
            await self._run()
        except asyncio.CancelledError:
            if self._main is None or self._stopping < GIVE_UP or self._main.uncancel():
                raise
        finally:
            self._main = None
            for number in handled:
                with suppress(NotImplementedError, RuntimeError, ValueError):
                    loop.remove_signal_handler(number)

    async def _run(self) -> None:
        async with self._store as store, asyncio.TaskGroup() as group:
            store.on_due.append(self._due)
            store.on_stop.append(self._asked_to_stop)
            store.on_deferred.append(self._deferring.wake.set)
            besides = [group.create_task(work()) for work in (self._beat, self._prune, self._record)]
            if self._deferring.handler is not None:
                besides.append(group.create_task(self._take_deferred(group)))
            try:
                await self._work(group)
                while self._tries:
                    self._wake.clear()
                    await self._wake.wait()
            finally:
                for task in (*besides, *(one.task for one in self._tries)):
                    task.cancel()
                self._limits.close()
                store.on_deferred.remove(self._deferring.wake.set)
                store.on_due.remove(self._due)
                store.on_stop.remove(self._asked_to_stop)

    def _due(self, time: int) -> None:
        """Something may be due at `time` of the database's clock, if not before."""
        self._next_is(time)
        self._wake.set()

    def _next_is(self, time: int | None) -> None:
        if time is not None:
            self._next_due = time if self._next_due is None else min(time, self._next_due)

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """Claim and start jobs until it is time to stop; wait for the next thing that happens in between."""
        pause = FIRST_PAUSE
        while not self._stopping:
            self._wake.clear()
            try:
                wait = await self._turn(group)
                pause = FIRST_PAUSE
            except LOST:
                self._next_due, self._look_at = 0, 0
                wait, pause = pause, min(LONGEST_PAUSE, 2 * pause)
            if wait:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()

    async def _turn(self, group: asyncio.TaskGroup) -> float:
        """Start what is due and there is room for; seconds until there may be more, unless woken before."""
        store, room, claimed = self._store, self._room, None
        if room and self._next_due is not None and store.until(self._next_due) == 0:
            self._next_due = None  # what is heard from here on is news
            claimed = await store.claim(self.name, room)
            if claimed is not None:
                for claim in claimed.claims:
                    self._start(claim, group)
                await asyncio.sleep(0)  # their handlers begin before anything else is asked
            if claimed is not None and claimed.more:
                self._next_due = 0
            elif claimed is not None and claimed.following is not None:
                self._next_is(claimed.following[0])
                self._look_at = min(self._look_at, self._looked + OFTEN)
            else:
                self._look_at = 0  # only the database knows what comes next
        if store.until(self._look_at) == 0:
            await self._look()
            if claimed is not None or not room or self._next_due is None or store.until(self._next_due) > 0:
                self._crowded = SHORTEST
            else:  # all that is due is in another one's hands
                self._crowded = min(LONGEST, 2 * self._crowded)
                return self._crowded
        if self._next_due is None or not self._room:
            return store.until(self._look_at)
        return store.until(min(self._look_at, self._next_due))

    @property
    def _room(self) -> int:
        """How many jobs more it can take; many that have ended and are not recorded yet count as well."""
        unrecorded = len(self._tries) - self._deferring.taken  # of deferred ones any number may end at once
        return max(0, min(self._concurrency - self._running, 2 * self._concurrency - unrecorded))

    async def _take_deferred(self, group: asyncio.TaskGroup) -> None:
        async for claim in self._deferring.take(self._store, self.name):
            self._start(claim, group)

    async def _look(self) -> None:
        """Ask when something happens by itself, and rescue what is due for that."""
        due, lost = await self._store.next()
        if lost is not None and self._store.until(lost) == 0:
            await self._store.rescue(self._max_attempts)
            due, lost = await self._store.next()
        self._next_is(due)
        self._looked = self._store.about()
        latest = self._looked + int(SAFETY * NS)
        self._look_at = latest if lost is None else min(lost, latest)

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
        self._running += not one.deferred
        self._limit(one)
        one.task = group.create_task(self._perform(one))
        if self._stopping > 1 or (self._stopping and one.deferred):  # while it was claimed
            one.interrupt("stopped")

    async def _perform(self, one: Try) -> None:
        """Run one try, and have it recorded how it ended. Its slot is free for another job meanwhile."""
        ending = None
        try:
            handler = self._deferring.handler if one.deferred else self._handler
            ending = await one.run(handler or self._handler, self._store, self._max_attempts)
        finally:
            one.over = True
            self._running -= not one.deferred
            self._deferring.end(one)
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
            await self._store.hearing.noted()
            held = await self._store.record([ending for _, ending in over])
            self.done += sum(held)
            self._tries.difference_update(one for one, _ in over)
            self._wake.set()

    def _limit(self, one: Try) -> None:
        """Have a try interrupted when its time is over; one that is deferred has its own pace."""
        limit, which, claim = self._run_timeout, "run_timeout", one.claim
        left = None if claim.deadline is None else self._store.until(claim.deadline)
        if left is not None and (left <= limit or one.deferred):
            limit, which = left, "timeout"
        elif one.deferred:
            return
        self._limits.put(one, limit, which)
