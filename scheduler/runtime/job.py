"""What a handler and whoever submitted to it hold: `Job` and `Ticket`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any

from scheduler.core.entry import WAITING
from scheduler.core.policy import Cause
from scheduler.core.quota import NS, Usage, instance
from scheduler.runtime.grant import Turn, is_cancelled
from scheduler.runtime.values import Receipt

Prompt = str | list[dict[str, Any]]
"""A text, or a list of Messages-API content."""

MEMORY_MAX = 500
"""Characters that a job remembers at most."""


class Job(Turn):
    """One submitted prompt, as its handler sees it.

    `prompt` is what was submitted, `tenant` who pays, `session` the conversation it belongs to or None,
    `cost` what was charged for it at the grant, `gate` the name of the gate it passes. `model` and
    `max_tokens` are what a rung of its ladder says instead of the usual, or None.
    """

    __slots__ = ("prompt", "timeout")

    prompt: Prompt
    timeout: float | None
    """Seconds from submit to the result."""
    attempt: int = 1
    stopped: str | None = None
    """Why its run was interrupted: timeout, run_timeout, cancelled, closed; a worker's also stopped, lost."""
    remembered: str | None = None
    """What `remember` was told last, in this try or an earlier one."""
    cancelling: int | None = None
    """How often its task had been cancelled when the run began, once the interruption cancels it too."""

    def __repr__(self) -> str:
        return f"<Job {self.id} tenant={self.tenant!r} attempt={self.attempt} state={self.state.value}>"

    @property
    def id(self) -> str:
        """Unique within this scheduler, and unlikely to occur in another one."""
        return f"{self.scheduler.name}-{self.sequence}"

    @property
    def deadline(self) -> float | None:
        """When its result is no longer wanted, in seconds of the scheduler's clock."""
        return None if self.expires is None else self.expires / NS

    @property
    def receipt(self) -> Receipt:
        """How it is served: which rung of its ladder, if any, after what wait, at what cost."""
        return Receipt(
            rung=self.rung - 1 if self.rung and not self.policy.dark else None,
            predicted=self.predicted / NS if self.rung and not self.policy.dark else None,
            model=self.model,
            max_tokens=self.max_tokens,
            deferred=self.deferred,
            waited=self.waited,
            gate=self.gate,
            cost=self.cost,
            usage=self.usage,
        )

    def settle(self, usage: Usage) -> None:
        """Say what the call really used; it replaces the estimate when the handler ends."""
        self.usage = instance("usage", usage, Usage)

    @property
    def survives(self) -> bool:
        """Whether another worker goes on with it if this run ends now, cancelled or by `SchedulerClosed`.

        That one finds what it `remembered`. So it is with deferred jobs of a store, unless it is they that
        are cancelled, or their time is over.
        """
        return False

    async def remember(self, text: str) -> bool:
        """Keep a short text for the tries after this one, in place of what was remembered before.

        Ids, say: no contents, since it is kept in the clear. At most `MEMORY_MAX` characters of printable
        ASCII. True once every later try is sure to find it as `remembered`: over a store it is committed
        then, and a database that is away was waited for. False, and nothing is kept, if another try has the
        job by now. A call that is cancelled may have kept it or not. Over a store only a deferred job can
        remember something, and it forgets that when it goes back to its line.
        """
        self.remembered = short(text)
        return True


def short(text: str) -> str:
    """Check what a job shall remember. Errors do not say what it was."""
    if not isinstance(text, str):
        raise TypeError(f"text: must be a string, got {type(text).__name__}")
    if len(text) > MEMORY_MAX or not (text.isascii() and text.isprintable()):
        raise ValueError(f"text: must be at most {MEMORY_MAX} characters of printable ASCII")
    return text


Handler = Callable[[Job], Awaitable[Any]]
"""What runs when a job is granted."""


class QueuedJob(Job):
    """A job of `enqueue`: nobody waits for its turn, so being granted starts a task."""

    __slots__ = ("ticket",)

    ticket: Ticket | None
    """Who waits for its result; None once that is there, so that the two let go of each other."""
    watched = True

    def granted(self) -> bool:
        """Start the handler in the scheduler's task group, or go on with it after a retry."""
        if self.future is not None:
            return super().granted()
        if self.ticket is None:
            return False
        self.scheduler.start(self.ticket)
        return True

    def failed(self, error: Exception) -> None:
        """Let whoever asks for the result know."""
        if self.future is not None:
            super().failed(error)
        elif self.ticket is not None:
            self.ticket.finish(error)


class Ticket:
    """What the caller of `enqueue` holds while its job waits and runs."""

    __slots__ = ("_outcome", "context", "job")

    def __init__(self, job: QueuedJob) -> None:
        self.job = job
        # The handler runs in the context of whoever enqueued it, not of whoever happens to make room for it.
        self.context = copy_context()
        self._outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Nobody need ask for a result: a failure is counted in the statistics, not complained about.
        self._outcome.add_done_callback(lambda outcome: outcome.cancelled() or outcome.exception())

    def __repr__(self) -> str:
        return f"<Ticket {self.id} tenant={self.tenant!r} state={self.state}>"

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def tenant(self) -> str:
        """Who pays."""
        return self.job.tenant

    @property
    def new(self) -> bool:
        """Whether this call had the job accepted: over a store, none before it under the same key."""
        return True

    @property
    def state(self) -> str:
        """``"waiting"``, ``"running"``, ``"done"``, ``"failed"`` or ``"cancelled"``."""
        if self._outcome.done():
            error = self._outcome.exception()
            return "done" if error is None else "cancelled" if is_cancelled(error) else "failed"
        return "waiting" if self.job.state is WAITING else "running"

    @property
    def receipt(self) -> Receipt:
        """How the job is, or was, served: which rung of its ladder, after what wait, at what cost."""
        return self.job.receipt

    @property
    def wait(self) -> float:
        """Seconds promised at submit, by the tenant's own buckets. Fixed."""
        return self.job.promised_wait

    @property
    def position(self) -> int:
        """Jobs that go before it in its line now; 0 for the next one, and once it runs."""
        return self.job.scheduler.outlook(self.job).position

    @property
    def expected(self) -> float:
        """Seconds from submit at which it is now expected to start, over everything; or at which it did.

        If it ended without ever starting: what was promised.
        """
        job = self.job
        expected = job.scheduler.outlook(job).expected
        return (expected - job.arrival) / NS if expected > job.arrival else self.wait

    @property
    def delayed_by(self) -> frozenset[Cause]:
        """The named causes that made it later than promised; empty while it is on time."""
        job = self.job
        if job.scheduler.outlook(job).expected <= job.promised:
            return frozenset()
        return job.scheduler.engine.delayed_by(job)

    def cancel(self) -> bool:
        """Withdraw the job, or cancel its running handler. False if it was over already.

        `result` then raises `JobFailed` of kind ``"cancelled"``.
        """
        return self.job.scheduler.cancel(self)

    async def result(self) -> Any:
        """What the handler returned. Cancelling this call does not withdraw the job."""
        return await asyncio.shield(self._outcome)

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record the outcome, once."""
        if self._outcome.done():
            return
        self.job.ticket = None
        if error is None:
            self._outcome.set_result(result)
        else:
            self._outcome.set_exception(error)
