"""Runs: a handler that takes its time is bounded by it, and can be interrupted."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any

from scheduler.core.engine import Engine
from scheduler.core.quota import NS
from scheduler.errors import DeadlineExceeded, JobFailed, SchedulerClosed
from scheduler.runtime.arguments import Bounds
from scheduler.runtime.clock import Clock
from scheduler.runtime.job import Job
from scheduler.runtime.turns import Turns


class Runs(Turns):
    """The handlers that run, each with its task and how often others had cancelled that before."""

    _cancelling = False

    def __init__(self, engine: Engine, clock: Clock, bounds: Bounds) -> None:
        super().__init__(engine, clock)
        self._bounds = bounds
        self._runs: dict[Job, tuple[asyncio.Task[Any] | None, int]] = {}
        self._watch: asyncio.TimerHandle | None = None

    def stop_watch(self) -> None:
        """Watch no more time limits."""
        if self._watch is not None:
            self._watch.cancel()

    def _watched(self, job: Job) -> asyncio.TimerHandle | None:
        """Have a run watched until it is taken from `_runs`; the alarm of its own time limit, if any."""
        loop = self._loop
        task = asyncio.current_task(loop)
        self._runs[job] = task, 0 if task is None else task.cancelling()
        if self._watch is None:  # with a context of its own: it must keep no job's alive
            at = loop.time() + self._bounds.run_timeout
            self._watch = loop.call_at(at, self._overdue, context=Context())
        deadline = job.expires
        if deadline is None:
            return None
        left = max(0, deadline - self._now()) / NS
        return loop.call_at(loop.time() + left, self.interrupt, job, "timeout")

    def _overdue(self) -> None:
        """Interrupt what has run for too long. One timer serves all runs, and few tries ever see it."""
        now, bound = self._now(), int(self._bounds.run_timeout * NS)
        self._watch, soonest = None, None
        for job in self._runs:
            if job.deferred:
                continue
            due = job.slot + bound
            if due <= now:
                self.interrupt(job, "run_timeout")
            elif soonest is None or due < soonest:
                soonest = due
        if soonest is not None:
            at = self._loop.time() + (soonest - now) / NS
            self._watch = self._loop.call_at(at, self._overdue, context=Context())

    def interrupt(self, job: Job, reason: str) -> None:
        """Cancel a running handler for a reason, once it has come to rest."""
        if job.stopped is None:
            job.stopped = reason
            self._loop.call_soon(self._cancel_run, job)

    def _cancel_run(self, job: Job) -> None:
        task, before = self._runs.get(job, (None, 0))
        if task is not None:
            job.cancelling = before
            task.cancel()

    def _explain(self, job: Job, error: BaseException | None) -> None:
        """Raise what the interruption of a try means to its caller; nothing if others cancelled it too."""
        task, _ = self._runs.get(job, (None, 0))
        if job.cancelling is not None and task is not None:
            others = task.uncancel() > job.cancelling
            job.cancelling = None
            if others and isinstance(error, asyncio.CancelledError):
                return
        cause = error if isinstance(error, Exception) else None
        if job.stopped == "closed":
            raise SchedulerClosed("the scheduler was closed while the job ran") from cause
        if job.stopped == "cancelled":
            raise JobFailed(job.tenant, "cancelled", job.attempt) from cause
        seconds = job.timeout if job.stopped == "timeout" else self._bounds.run_timeout
        raise DeadlineExceeded(job.tenant, str(job.stopped), seconds or 0.0) from cause
