"""Jobs: the handler of a granted job, its tries, its time limits, and the closing of it all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self

from scheduler.core.engine import Engine
from scheduler.core.entry import State
from scheduler.core.policy import Reason
from scheduler.core.quota import NS, Usage, nanoseconds, positive, whole
from scheduler.errors import DeadlineExceeded, ErrRateLimited, JobFailed, Retry, SchedulerClosed
from scheduler.runtime.clock import Clock
from scheduler.runtime.grant import Grant, Handler, Job, Ticket, current_job, is_cancelled
from scheduler.runtime.run import Run, stepwise
from scheduler.runtime.turns import Turns

NOTHING = Usage(0, 0, 0)


class Jobs(Turns):
    """Runs jobs: `submit`'s in the caller's task, `enqueue`'s in the scheduler's task group."""

    def __init__(
        self, engine: Engine, clock: Clock, handler: Handler | None, run_timeout: float, max_attempts: int
    ) -> None:
        super().__init__(engine, clock)
        if handler is not None and not callable(handler):
            raise TypeError(f"handler: must be an async callable, got {handler!r}")
        self._handler: Handler = handler  # type: ignore[assignment] # without one, only admit and hooks serve
        self._run_timeout = float(positive("run_timeout", run_timeout))
        self._max_attempts = whole("max_attempts", max_attempts, 1)
        self._group: asyncio.TaskGroup | None = None
        self._runs: dict[Job, Run] = {}
        self._quiet = asyncio.Event()
        self._starting = False
        self._cancelling = False
        self.jobs = 0
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
            if self._group is not None:
                await self._group.__aexit__(None, None, None)

    async def aclose(self, *, drain: bool = True) -> None:
        """Take no more jobs, and return when none is left.

        `drain` True: all accepted jobs run. False: waiting callers get `SchedulerClosed` at once, running
        handlers are cancelled, and their callers get `SchedulerClosed` when they have ended.
        """
        self.closed = True
        if not drain:
            self._abort()
        while self._busy:
            self._quiet.clear()
            await self._quiet.wait()

    def _abort(self) -> None:
        """Withdraw whoever waits, and cancel whoever runs."""
        self._cancelling = True
        for entry in self.engine.everyone():
            if isinstance(entry, Grant):
                self.withdraw(entry)
                entry.failed(SchedulerClosed("the scheduler was closed while the call waited"))
        for run in list(self._runs.values()):
            run.interrupt("closed")
        self.changed()

    def changed(self) -> None:
        """Tell whom it concerns, arm the timer, and let a closing scheduler notice that it is empty."""
        super().changed()
        if self.closed and not self._busy:
            self._quiet.set()

    @property
    def _busy(self) -> bool:
        """Whether any job waits, is about to resume, or runs."""
        return bool(self.engine.waiting or self.resuming or self.jobs)

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
        if ticket.job.grant.state is State.RUNNING:
            self.resuming -= 1
            self.withdraw(ticket.job.grant)
            ticket.finish(SchedulerClosed("the task of the job was cancelled"))

    async def _perform_queued(self, ticket: Ticket) -> None:
        if self._starting:  # an eager task: its turn is behind those who have yet to resume
            await asyncio.sleep(0)
        self.resuming -= 1
        try:
            ticket.finish(None, await self.perform(ticket.job, offered=True))
        except Exception as error:
            ticket.finish(error)
        except BaseException:
            ticket.finish(SchedulerClosed("the task of the job was cancelled"))
            raise

    def abandon(self, ticket: Ticket, error: Exception) -> None:
        """An enqueued job that never ran waits no more."""
        ticket.finish(error)

    def cancel(self, ticket: Ticket) -> bool:
        """Withdraw a job, or cancel its handler. False if it is over."""
        job, grant = ticket.job, ticket.job.grant
        error = JobFailed(job.tenant, "cancelled", job.attempt - 1)
        if grant.state is State.WAITING:
            self.withdraw(grant)
            grant.failed(error)
            self.changed()
            return True
        if grant.state is not State.RUNNING:
            return False
        job.stopped = "cancelled"
        if job in self._runs:
            self._runs[job].interrupt("cancelled")
        return True

    async def perform(self, job: Job, offered: bool) -> Any:
        """Wait for a job's turn unless it had it, try until there is a result or a failure, and settle."""
        grant = job.grant
        if not offered and not self.offer(grant):
            await self.turn(grant)
        while True:
            self.jobs += 1
            outer = current_job.get()
            current_job.set(job)
            try:
                if job.stopped is not None or self._cancelling:
                    grant.usage = NOTHING
                    job.attempt -= 1  # it will not begin
                    self._explain(job, job.stopped or "closed", "")
                steps = stepwise(self._handler(job))
                try:
                    yielded = steps.send(None)
                except StopIteration as done:
                    result = done.value
                else:
                    result = await self._go_on(job, steps, yielded)
            except Retry as retry:
                await self._again(job, retry)
            except BaseException as error:
                self.counts["cancelled" if _is_cancelling(error) else "failed"] += 1
                self.settle_grant(grant, grant.usage)
                raise
            else:
                self.done += 1
                self.settle_grant(grant, grant.usage)
                return result
            finally:
                current_job.set(outer)  # not `reset`, which a coroutine closed from elsewhere may not do
                self.jobs -= 1
                if self.closed:
                    self.changed()

    async def _go_on(self, job: Job, steps: Coroutine[Any, Any, Any], yielded: Any) -> Any:
        """Bound the rest of a try by `run_timeout` and by the job's deadline."""
        seconds, which = self._run_timeout, "run_timeout"
        if job.grant.deadline is not None:
            left = (job.grant.deadline - self._now()) / NS
            if left < seconds:
                seconds, which = left, "timeout"
        run = self._runs[job] = Run()
        if job.stopped is not None or self._cancelling:  # by the handler itself, before it first suspended
            run.interrupt(job.stopped or "closed")
        try:
            return await run.go_on(steps, yielded, seconds)
        except TimeoutError:
            if run.interrupted is None:
                raise
            self._explain(job, run.interrupted, which)
        finally:
            del self._runs[job]

    def _explain(self, job: Job, interrupted: str, which: str) -> NoReturn:
        """Raise what an interrupted try means to the caller."""
        if interrupted == "closed":
            raise SchedulerClosed("the scheduler was closed while the job ran") from None
        if interrupted == "cancelled":
            raise JobFailed(job.tenant, "cancelled", job.attempt) from None
        seconds = job.timeout if which == "timeout" and job.timeout is not None else self._run_timeout
        raise DeadlineExceeded(job.tenant, which, seconds) from None

    async def _again(self, job: Job, retry: Retry) -> None:
        """Put a job back in its line after `Retry`, and wait for its next turn; or fail it for good."""
        grant, now = job.grant, self._now()
        if job.stopped is not None or self._cancelling:
            self.counts["cancelled"] += 1
            self.settle_grant(grant, grant.usage)
            self._explain(job, job.stopped or "closed", "")
        again = now + nanoseconds("after", retry.after)
        if retry.pause_gate and again > grant.gate.paused_until:
            self.engine.pause(now, grant.gate.name, again)
        kind = str(getattr(retry.__cause__, "kind", type(retry.__cause__ or retry).__name__))
        if not retry.refused and job.attempt >= self._max_attempts:
            self.counts["failed"] += 1
            self.settle_grant(grant, grant.usage)
            raise JobFailed(job.tenant, kind, job.attempt) from retry.__cause__
        refusal = self.engine.retry(now, grant, again, retry.refused)
        if refusal is not None:
            self.changed()
            self.counts["failed"] += 1
            if refusal.reason is Reason.DEADLINE:
                raise DeadlineExceeded(job.tenant, "timeout", job.timeout or 0.0) from retry.__cause__
            if retry.refused:
                self.refusals[refusal.reason] += 1
                raise ErrRateLimited(job.tenant, refusal.reason, refusal.retry_after / NS) from retry.__cause__
            raise JobFailed(job.tenant, kind, job.attempt) from retry.__cause__
        self.counts["retried"] += 1
        job.attempt += not retry.refused
        job.tries += 1
        job.free_message = True
        grant.usage = None
        # Told only once it waits: a job that goes back at once resumes in its place among those that moved.
        asyncio.get_running_loop().call_soon(self.changed)
        await self.turn(grant, told=False)


def _is_cancelling(error: BaseException) -> bool:
    """Whether a job ended because somebody wanted no more of it."""
    return isinstance(error, (asyncio.CancelledError, GeneratorExit, SchedulerClosed)) or is_cancelled(error)
