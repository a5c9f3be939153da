"""Jobs: the handler of a granted job, its tries, its time limits, and the closing of it all."""

from __future__ import annotations

import asyncio
from functools import partial
from types import TracebackType
from typing import Any, Self

from scheduler.core.engine import Engine
from scheduler.core.entry import RUNNING, WAITING
from scheduler.core.gate import SPREAD
from scheduler.core.policy import Reason
from scheduler.core.quota import NOTHING, NS
from scheduler.errors import (
    DeadlineExceeded,
    ErrRateLimited,
    JobFailed,
    Retry,
    SchedulerClosed,
)
from scheduler.runtime.arguments import Bounds
from scheduler.runtime.clock import Clock
from scheduler.runtime.grant import Turn, current_turn, is_cancelled, is_stray, kind_of
from scheduler.runtime.job import Handler, Job, Ticket
from scheduler.runtime.runs import Runs

STEPS = 3
"""Steps of the loop within which a job that was granted its turn has begun to run."""


class Jobs(Runs):
    """Runs jobs: `submit`'s in the caller's task, `enqueue`'s in the scheduler's task group."""

    _deferred: Any = None
    _counting: set[asyncio.Timeout] | None = None

    def __init__(self, engine: Engine, clock: Clock, handler: Handler | None, bounds: Bounds) -> None:
        super().__init__(engine, clock, bounds)
        if handler is not None and not callable(handler):
            raise TypeError(f"handler: must be an async callable, got {handler!r}")
        self._handler: Handler = handler  # type: ignore[assignment] # without one, only admit and hooks serve
        self._group: asyncio.TaskGroup | None = None
        self._quiet = asyncio.Event()
        self._starting = False
        self.done = 0

    # --- life ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("a scheduler can be entered only once")
        self._group = await asyncio.TaskGroup().__aenter__()
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.aclose(drain=kind is None)
        except BaseException:
            self._abort()
            raise
        finally:
            self.shut()
            self.stop_watch()
            if self._group is not None:
                await self._group.__aexit__(None, None, None)

    async def aclose(self, *, drain: bool = True) -> None:
        """Take no more jobs, and return when none is left.

        `drain` True: all accepted jobs run. False: waiting callers get `SchedulerClosed` at once, running
        handlers are cancelled, and their callers get `SchedulerClosed` when they have ended. A handler cannot
        drain the scheduler that it runs in: RuntimeError.
        """
        if drain and asyncio.current_task() in [task for task, _ in self._runs.values()]:
            raise RuntimeError("aclose: the handler of a job would wait for itself; close with drain=False")
        self.closed = True
        if not drain:
            self._abort()
            for count in self._counting or ():
                if not count.expired():
                    count.reschedule(0)
        while self._busy:
            self._quiet.clear()
            await self._quiet.wait()

    def _abort(self) -> None:
        """Withdraw whoever waits, and cancel whoever runs."""
        self._cancelling = True
        self.turn_away(lambda _: SchedulerClosed("the scheduler was closed while the call waited"))
        for job in self._runs:
            self.interrupt(job, "closed")
        self.changed()

    def changed(self) -> None:
        """Tell whom it concerns, arm the timer, and let a closing scheduler notice that it is empty."""
        super().changed()
        if self.closed and not self._busy:
            self._quiet.set()

    @property
    def _busy(self) -> bool:
        """Whether any job waits, is about to resume, or runs."""
        engine = self.engine
        return bool(engine.waiting or engine.moved or self.resuming or self._runs or self._counting)

    # --- running ------------------------------------------------------------------------------------

    def start(self, ticket: Ticket) -> None:
        """Run an enqueued job that was granted."""
        if self._group is None:
            return
        self._starting = True
        work = self._perform_queued(ticket)
        try:
            task = self._group.create_task(work, name=f"job {ticket.id}", context=ticket.context)
        except RuntimeError:  # the group is being torn down
            work.close()
            asyncio.get_running_loop().call_soon(self._ended, ticket)
        else:
            task.add_done_callback(partial(self._ended, ticket))
        finally:
            self._starting = False

    def _ended(self, ticket: Ticket, task: asyncio.Task[None] | None = None) -> None:
        """The task of a job is over, perhaps without ever having begun."""
        if ticket.job.state is RUNNING:
            self.resuming -= 1
            self.withdraw(ticket.job)
            ticket.finish(SchedulerClosed("the task of the job was cancelled"))

    async def _perform_queued(self, ticket: Ticket) -> None:
        if self._starting:  # an eager task: its turn is behind those who have yet to resume
            await asyncio.sleep(0)
        self.resuming -= 1
        try:
            ticket.finish(None, await self.perform(ticket.job, has_turn=True))
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to whoever asks
            ticket.finish(error)
        except BaseException as error:
            if not is_stray(error):
                ticket.finish(SchedulerClosed("the task of the job was cancelled"))
                raise
            failed = JobFailed(ticket.job.tenant, kind_of(error), ticket.job.attempt)
            failed.__cause__ = error
            ticket.finish(failed)

    def cancel(self, ticket: Ticket) -> bool:
        """Withdraw a job, or cancel its handler. False if it is over."""
        job = ticket.job
        error = JobFailed(job.tenant, "cancelled", job.attempt - 1)
        if job.state is WAITING:
            self.withdraw(job)
            job.failed(error)
            self.changed()
            return True
        if job.state is not RUNNING:
            return False
        self.interrupt(job, "cancelled")
        return True

    async def cancel_all(self, tenant: str) -> None:
        """Withdraw whoever waits for a tenant, and cancel its handlers."""
        last = self.engine.sequence
        self.turn_away(
            lambda turn: JobFailed(tenant, "cancelled", max(0, getattr(turn, "attempt", 1) - 1)),
            lambda turn: turn.tenant == tenant and turn.holder is None,
        )
        self.changed()
        for _ in range(STEPS):  # those who were granted their turn just now begin to run
            await asyncio.sleep(0)
        for job in list(self._runs):
            if job.tenant == tenant and job.sequence <= last:
                self.interrupt(job, "cancelled")

    async def perform(self, job: Job, has_turn: bool = False) -> Any:  # noqa: C901, PLR0912, PLR0915
        """Wait for a job's turn, unless it had it while nobody ran here; try it until it ends, and settle."""
        waited = has_turn or not self.offer(job)
        if waited and not has_turn:
            try:
                await self.until(job)
            except BaseException:
                self.gone(job)
                raise
            self.resumed(job)
        while True:
            outer = current_turn.set(job).old_value
            if isinstance(outer, Turn) and outer.state is RUNNING and outer is not job:
                job.outer = outer
            try:
                if waited:
                    self._still_wanted(job)
                alarm = self._watched(job)
                try:
                    # A job with a ladder is never plain, and `plain` is the quicker one to read.
                    result = await (self._handler if job.plain or not job.deferred else self._deferred)(job)
                except (Exception, asyncio.CancelledError) as error:
                    if job.stopped is not None:
                        self._explain(job, error)
                    raise
                else:
                    if job.stopped is not None:
                        self._explain(job, None)
                finally:
                    del self._runs[job]
                    if alarm is not None:
                        alarm.cancel()
            except Retry as retry:
                await self._again(job, retry)
                waited = True
            except BaseException as error:
                self._fail(job, error)
                raise
            else:
                self.done += 1
                if job.usage is not None or not self.engine.finish(job):
                    self.settle_grant(job, job.usage)
                return result
            finally:
                if job.outer is not None:
                    # Not `reset`, which a coroutine that is closed from elsewhere may not do.
                    current_turn.set(job.outer)
                    job.outer = None
                if self.closed:
                    self.changed()

    def _still_wanted(self, job: Job) -> None:
        """Raise, and give everything back, if a job was interrupted between its grant and its start.

        So it is too if its gate was closed.
        """
        if job.shared.closed_until is not None and job.shared.shut_to(job):
            job.usage = NOTHING
            self.ensure_open(job)
        if self._cancelling and job.stopped is None:
            job.stopped = "closed"
        if job.stopped is not None:
            job.usage = NOTHING
            job.attempt -= 1
            self._explain(job, None)

    def _fail(self, job: Job, error: BaseException) -> None:
        """Settle a job that ends without a result."""
        self.counts["cancelled" if is_cancelled(error) else "failed"] += 1
        self.settle_grant(job, job.usage)

    async def _again(self, job: Job, retry: Retry) -> None:
        """Put a job back in its line after `Retry`, and wait for its next turn; or fail it for good."""
        now = self._now()
        again = now + retry.after_ns
        if retry.pause_gate and again > job.shared.paused_until + SPREAD:  # unless the gate has heard of it
            self.engine.pause(now, job.gate, again)
        kind = kind_of(retry.__cause__ or retry)
        if not retry.refused and job.attempt >= self._bounds.max_attempts:
            self.counts["failed"] += 1
            self.settle_grant(job, job.usage)
            raise JobFailed(job.tenant, kind, job.attempt) from retry.__cause__
        refusal = self.engine.retry(now, job, again, retry.refused, job.usage)
        if refusal is not None:
            self.changed()
            self.counts["failed"] += 1
            if refusal.reason is Reason.DEADLINE:
                raise DeadlineExceeded(job.tenant, "timeout", job.timeout or 0.0) from retry.__cause__
            if retry.refused or refusal.reason is Reason.SPEND_LIMIT:
                self.refusals[refusal.reason] += 1
                raise ErrRateLimited(
                    job.tenant, refusal.reason, refusal.retry_after / NS
                ) from retry.__cause__
            raise JobFailed(job.tenant, kind, job.attempt) from retry.__cause__
        self.counts["retried"] += 1
        job.attempt += not retry.refused
        job.tries += 1
        job.free_message = True
        job.usage = None
        # Told only once it waits: a job that goes back at once resumes in its place among those that moved.
        asyncio.get_running_loop().call_soon(self.changed)
        await self.turn(job, told=False)
