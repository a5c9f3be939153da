"""The background process: claims jobs from a store, runs a handler for each, and records how they ended."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
from contextlib import suppress
from typing import Any

from scheduler.core.entry import ENDED
from scheduler.core.entry import RUNNING as GRANTED
from scheduler.core.policy import Policy
from scheduler.core.quota import NS, nanoseconds, positive, whole
from scheduler.errors import Retry
from scheduler.runtime.grant import current_turn
from scheduler.runtime.job import Handler, Job
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import FIRST_PAUSE, LONGEST_PAUSE, LOST, SAFETY
from scheduler.stores.results import dump
from scheduler.stores.values import CANCELLED, DONE, FAILED, Again, Claim, Ended

PRUNING = 60.0
"""Seconds between looks for results that were kept long enough."""

POLICY = Policy()


class WorkerJob(Job):
    """One job as its handler sees it, in a worker."""

    __slots__ = ("claim",)

    def __init__(self, store: Any, claim: Claim) -> None:
        super().__init__(store, claim.tenant, "", POLICY, claim.cost)
        self.arrival, self.promised, self.slot = claim.arrival, claim.promised, claim.slot
        self.sequence, self.session, self.expires = claim.id, claim.session, claim.deadline
        self.state = GRANTED
        self.prompt, self.timeout = json.loads(claim.prompt), None
        self.claim = claim
        self.attempt = claim.attempt
        self.tries = claim.tries

    @property
    def id(self) -> str:
        """The number that the store gave it."""
        return str(self.claim.id)


class Run:
    """One try under way, from its claim until it is recorded."""

    __slots__ = ("begun", "claim", "over", "reason", "task")

    task: asyncio.Task[None]

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.begun = self.over = False
        self.reason: str | None = None

    def interrupt(self, reason: str) -> None:
        """Cancel the handler, once. One that has ended stays as it ended: that only has to be recorded."""
        if self.reason is None and not self.over:
            self.reason = reason
            if self.begun:  # a task that is cancelled before its first step never gets to record anything
                self.task.cancel()


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
        self._runs: set[Run] = set()
        self._wake = asyncio.Event()
        self._stopping = 0
        self.done = 0

    # --- life -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The first call: claim no more, finish what runs. The second: cancel what runs, and give it back."""
        self._stopping += 1
        self._wake.set()
        if self._stopping > 1:
            for run in self._runs:
                run.interrupt("stopped")

    async def run(self) -> None:
        """Work until `stop` is called. SIGTERM and SIGINT call it, where the loop can handle signals."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
        async with self._store as store, asyncio.TaskGroup() as group:
            store.on_due.append(self._due)
            store.on_stop.append(self._asked_to_stop)
            beating, pruning = group.create_task(self._beat()), group.create_task(self._prune())
            try:
                await self._work(group)
                while self._runs:
                    await asyncio.wait([run.task for run in self._runs])
            finally:
                beating.cancel()
                pruning.cancel()
                store.on_due.remove(self._due)
                store.on_stop.remove(self._asked_to_stop)
                for number in (signal.SIGTERM, signal.SIGINT):
                    with suppress(NotImplementedError, RuntimeError, ValueError):
                        loop.remove_signal_handler(number)

    def _due(self, _: int) -> None:
        self._wake.set()

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """Claim and start jobs until it is time to stop; wait for the next thing that happens in between."""
        pause = FIRST_PAUSE
        while not self._stopping:
            self._wake.clear()
            try:
                free = self._concurrency - len(self._runs)
                claimed = await self._store.claim(self.name, free) if free else None
                for claim in claimed.claims if claimed is not None else ():
                    self._start(claim, group)
                if claimed is not None and claimed.more and self._concurrency > len(self._runs):
                    continue
                wait = await self._next()
                pause = FIRST_PAUSE
            except LOST:
                wait, pause = pause, min(LONGEST_PAUSE, 2 * pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait)

    async def _next(self) -> float:
        """Seconds until something happens by itself, after rescuing what was due for that."""
        due, lost = await self._store.next()
        if lost is not None and self._store.until(lost) == 0.0:
            await self._store.rescue(self._max_attempts)
            due, lost = await self._store.next()
        full = len(self._runs) >= self._concurrency
        times = [time for time in (None if full else due, lost) if time is not None]
        return min([SAFETY, *(self._store.until(time) for time in times)])

    # --- leases ---------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Renew the leases of all that runs, three times in the length of one."""
        interval = self._store.lease_ns / NS / 3
        while True:
            await asyncio.sleep(interval)
            runs = list(self._runs)
            if not runs:
                continue
            with suppress(*LOST):
                held = await self._store.beat([run.claim for run in runs])
                for run in runs:
                    if run.claim.id not in held:
                        run.interrupt("lost")
                    elif held[run.claim.id]:
                        run.interrupt("cancelled")

    async def _prune(self) -> None:
        """Forget results that were kept long enough, a few at a time."""
        while True:
            with suppress(*LOST):
                while await self._store.prune():
                    pass
            await asyncio.sleep(PRUNING)

    def _asked_to_stop(self, job: int) -> None:
        for run in self._runs:
            if run.claim.id == job:
                run.interrupt("cancelled")

    # --- jobs -----------------------------------------------------------------------------------------------

    def _start(self, claim: Claim, group: asyncio.TaskGroup) -> None:
        run = Run(claim)
        if claim.tries > 1:  # an earlier try may still be under way here, with its lease lost unnoticed
            for other in self._runs:
                if other.claim.id == claim.id:
                    other.interrupt("lost")
        self._runs.add(run)
        run.task = group.create_task(self._perform(run))

    async def _perform(self, run: Run) -> None:
        """Run one try, and record how it ended."""
        run.begun = True
        try:
            ending = await self._try(run)
            run.over = True
            if ending is not None:
                recorded = await self._store.settle(ending)  # not in one line: others count meanwhile
                self.done += recorded
        finally:
            self._runs.discard(run)
            self._wake.set()

    async def _try(self, run: Run) -> Ended | Again | None:
        claim = run.claim
        job = WorkerJob(self._store, claim)
        if run.reason is not None:
            return self._interrupted(run, job)
        current_turn.set(job)
        limit, which = self._run_timeout, "run_timeout"
        if claim.deadline is not None and self._store.until(claim.deadline) <= limit:
            limit, which = self._store.until(claim.deadline), "timeout"
        bound = asyncio.timeout(limit)
        try:
            async with bound:
                result = await self._handler(job)
            return self._done(claim, job, result)
        except Retry as retry:
            return self._again(claim, job, retry)
        except asyncio.CancelledError:
            return self._interrupted(run, job)
        except TimeoutError as error:
            return self._ended(claim, job, FAILED, kind=which if bound.expired() else type(error).__name__)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is recorded
            return self._ended(claim, job, FAILED, kind=kind_of(error))
        finally:
            job.state = ENDED

    def _ended(
        self, claim: Claim, job: Job, state: int, result: str | None = None, kind: str | None = None
    ) -> Ended:
        return Ended(claim.id, claim.tenant, claim.tries, state, result, kind, job.usage)

    def _done(self, claim: Claim, job: Job, result: Any) -> Ended:
        try:
            return self._ended(claim, job, DONE, dump(result))
        except (TypeError, ValueError, RecursionError):
            return self._ended(claim, job, FAILED, kind="result_is_not_json")

    def _again(self, claim: Claim, job: Job, retry: Retry) -> Ended | Again:
        """Another try after `Retry`, unless it was the last attempt or comes too late."""
        kind = kind_of(retry.__cause__ or retry)
        if not retry.refused and claim.attempt >= self._max_attempts:
            return self._ended(claim, job, FAILED, kind=kind)
        after = nanoseconds("after", retry.after)
        if claim.deadline is not None and self._store.about() + after >= claim.deadline:
            return self._ended(claim, job, FAILED, kind="timeout")
        return Again(claim.id, claim.tenant, claim.tries, after, retry.refused, not retry.refused, job.usage)

    def _interrupted(self, run: Run, job: Job) -> Ended | Again | None:
        claim, reason = run.claim, run.reason
        if reason == "cancelled":
            return self._ended(claim, job, CANCELLED, kind="cancelled")
        if reason == "lost":
            return None  # somebody else has it
        if reason is None:
            raise asyncio.CancelledError  # the whole worker is torn down: the lease tells the others
        return Again(claim.id, claim.tenant, claim.tries, counted=False, usage=job.usage)


def kind_of(error: BaseException) -> str:
    """What is recorded of a failure: a kind that an error names itself, or its type. Never its text."""
    return str(getattr(error, "kind", type(error).__name__))
