"""What a caller, a handler and a hook hold: `Grant`, `Job` and `Ticket`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from scheduler.core.entry import NEW, WAITING, Entry
from scheduler.core.policy import Cause, Policy
from scheduler.core.quota import NS, ONE, Cost, Usage, instance
from scheduler.errors import SchedulerClosed

if TYPE_CHECKING:
    from scheduler.runtime.scheduler import Scheduler

Prompt = str | list[dict[str, Any]]
"""A text, or a list of Messages-API content."""

current_grant: ContextVar[Grant | None] = ContextVar("current_grant", default=None)
"""The grant under which this context runs, or ran: how a hook finds the one that covers its message.

It may stay behind when the work is over: whoever looks must see that it is still running.
"""


class Grant(Entry):
    """The right to make one call, from grant to settle.

    `async with scheduler.admit(…) as grant` waits for it and settles it at the end of the block. A hook's
    grant is settled by whoever called the hook.
    """

    __slots__ = ("future", "gate_name", "name", "scheduler")

    future: asyncio.Future[None] | None
    usage: Usage | None = None
    watched = False
    free_message: bool = True
    """Whether it still covers a message that a hook sees."""

    def __init__(self, scheduler: Scheduler, name: str, gate_name: str, policy: Policy, cost: Cost) -> None:
        # What Entry.__init__ does, said again: this is made once a call, and the extra frame shows.
        self.policy = policy
        self.cost = cost
        self.state = NEW
        self.refusal = None
        self.plain = cost is ONE
        self.slot = self.key = 0
        self.scheduler = scheduler
        self.name = name
        self.gate_name = gate_name
        self.future = None

    @property
    def waited(self) -> float:
        """Seconds from arrival to the slot of the (last) grant."""
        return (self.slot - self.arrival) / NS

    @property
    def promised_wait(self) -> float:
        """Seconds that were promised at submit."""
        return (self.promised - self.arrival) / NS

    def settle(self, usage: Usage | None = None) -> None:
        """End the grant. `usage` replaces the estimated cost; None says that the estimate was right.

        ``Usage(0, 0, 0)`` gives everything back. A second call does nothing.
        """
        if usage is not None:
            instance("usage", usage, Usage)
        self.scheduler.settle_grant(self, usage)

    async def __aenter__(self) -> Self:
        if self.state is not NEW:
            raise RuntimeError("a grant can be entered only once")
        scheduler = self.scheduler
        if not scheduler.offer(self):
            try:
                await scheduler.until(self)
            except BaseException:
                scheduler.gone(self)
                raise
            scheduler.resumed(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.scheduler.engine.finish(self):
            self.scheduler.settle_grant(self, None)

    def granted(self) -> bool:
        """Tell the waiting caller; False if it is no longer there (its cancellation gives the grant back)."""
        if self.future is None or self.future.done():
            return False
        self.future.set_result(None)
        return True

    def failed(self, error: Exception) -> None:
        """Tell the waiting caller that it waits in vain."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)


class Job:
    """One submitted prompt, as its handler sees it."""

    __slots__ = ("__dict__", "grant", "prompt", "timeout")

    attempt: int = 1
    tries: int = 1  # attempts, and the tries that an upstream refused, which are not counted as attempts
    stopped: str | None = None
    """Why its run was interrupted: timeout, run_timeout, cancelled, closed."""
    cancelling: int | None = None
    """How often its task had been cancelled when the run began, once the interruption cancels it too."""

    def __init__(self, grant: Grant, prompt: Prompt, timeout: float | None = None) -> None:
        self.grant = grant
        self.prompt = prompt
        self.timeout = timeout

    def __repr__(self) -> str:
        return f"<Job {self.id} tenant={self.tenant!r} attempt={self.attempt} state={self.grant.state.value}>"

    @property
    def id(self) -> str:
        """Unique within this scheduler, and unlikely to occur in another one."""
        return f"{self.grant.scheduler.name}-{self.grant.sequence}"

    @property
    def tenant(self) -> str:
        """Who pays."""
        return self.grant.name

    @property
    def session(self) -> str | None:
        """The conversation it belongs to, if any."""
        return self.grant.session

    @property
    def cost(self) -> Cost:
        """What was charged for it at the grant."""
        return self.grant.cost

    @property
    def gate(self) -> str:
        """The gate it passes."""
        return self.grant.gate.name

    @property
    def deadline(self) -> float | None:
        """When its result is no longer wanted, in seconds of the scheduler's clock."""
        return None if self.grant.deadline is None else self.grant.deadline / NS

    @property
    def waited(self) -> float:
        """Seconds from submit to the slot of the (last) grant."""
        return self.grant.waited

    def settle(self, usage: Usage) -> None:
        """Say what the call really used; it replaces the estimate when the handler ends."""
        self.grant.usage = instance("usage", usage, Usage)


Handler = Callable[[Job], Awaitable[Any]]
"""What runs when a job is granted."""


class QueuedGrant(Grant):
    """The grant of an enqueued job: nobody waits for it, so being granted starts a task."""

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

    def __init__(self, job: Job) -> None:
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
    def state(self) -> str:
        """``"waiting"``, ``"running"``, ``"done"``, ``"failed"`` or ``"cancelled"``."""
        if self._outcome.done():
            error = self._outcome.exception()
            return "done" if error is None else "cancelled" if is_cancelled(error) else "failed"
        return "waiting" if self.job.grant.state is WAITING else "running"

    @property
    def wait(self) -> float:
        """Seconds promised at submit, by the tenant's own buckets. Fixed."""
        return self.job.grant.promised_wait

    @property
    def position(self) -> int:
        """Jobs that go before it in its line now; 0 for the next one, and once it runs."""
        return self.job.grant.scheduler.outlook(self.job.grant).position

    @property
    def expected(self) -> float:
        """Seconds from submit at which it is now expected to start, over everything; or at which it did.

        If it ended without ever starting: what was promised.
        """
        grant = self.job.grant
        expected = grant.scheduler.outlook(grant).expected
        return (expected - grant.arrival) / NS if expected > grant.arrival else self.wait

    @property
    def delayed_by(self) -> frozenset[Cause]:
        """The named causes that made it later than promised; empty while it is on time."""
        grant = self.job.grant
        if grant.scheduler.outlook(grant).expected <= grant.promised:
            return frozenset()
        return grant.scheduler.engine.delayed_by(grant)

    def cancel(self) -> bool:
        """Withdraw the job, or cancel its running handler. False if it was over already.

        `result` then raises `JobFailed` of kind ``"cancelled"``.
        """
        return self.job.grant.scheduler.cancel(self)

    async def result(self) -> Any:
        """What the handler returned. Cancelling this call does not withdraw the job."""
        return await asyncio.shield(self._outcome)

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Record the outcome, once."""
        if self._outcome.done():
            return
        if isinstance(self.job.grant, QueuedGrant):
            self.job.grant.ticket = None
        if error is None:
            self._outcome.set_result(result)
        else:
            self._outcome.set_exception(error)


def is_cancelled(error: BaseException) -> bool:
    """Whether a job ended because somebody wanted no more of it."""
    ended = isinstance(error, (asyncio.CancelledError, GeneratorExit, SchedulerClosed))
    return ended or getattr(error, "kind", None) == "cancelled"
