"""What a caller and a hook hold: a `Turn`, and a `Grant` of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Self

from scheduler.core.entry import ENDED, NEW, RUNNING, Entry
from scheduler.core.policy import Policy
from scheduler.core.quota import NOTHING, NS, ONE, Cost, Usage, amount, instance
from scheduler.core.signals import Signal
from scheduler.errors import SchedulerClosed

if TYPE_CHECKING:
    from scheduler.runtime.scheduler import Scheduler

LONGEST_KIND = 200
"""Characters of what is recorded of a failure."""

current_turn: ContextVar[Turn | None] = ContextVar("current_turn", default=None)
"""The turn under which this context runs, or ran: how a hook finds the one that covers its message.

It may stay behind when the work is over: whoever looks must see that it is still running.
"""


def covering(books: object) -> Turn | None:
    """The innermost turn under which this context runs that is charged there and still runs.

    A deferred job covers nothing: it has no slot that a call made under it could use.
    """
    turn = current_turn.get()
    while turn is not None and (turn.state is not RUNNING or turn.deferred or turn.books is not books):
        turn = turn.outer
    return turn


class Turn(Entry):
    """A place in line and what it leads to: a `Grant` for a block or a hook, a `Job` for a handler.

    `future`: whoever waits for it in a coroutine. `gate`: the name of the gate it passes.
    """

    __slots__ = ("future", "gate", "scheduler", "tenant")

    future: asyncio.Future[None] | None
    usage: Usage | None = None
    tries: int = 1  # attempts, and the tries that an upstream refused, which are not counted as attempts
    watched = False
    counted: int | None = None
    """Input tokens that were counted for an estimate; None if its cost was given or needs none."""
    free_message: bool = True
    """Whether it still covers a message that a hook sees."""
    outer: Turn | None = None
    """The turn under which its work began, if that was running; forgotten when the work is over, so that
    jobs which enqueue one another do not keep each other for ever."""

    def __init__(self, scheduler: Scheduler, tenant: str, gate: str, policy: Policy, cost: Cost) -> None:
        # What Entry.__init__ does, said again: this is made once a call, and the extra frame shows.
        self.policy = policy
        self.cost = cost
        self.state = NEW
        self.refusal = None
        self.plain = cost is ONE
        self.slot = self.key = 0
        self.scheduler = scheduler
        self.tenant = tenant
        self.gate = gate
        self.future = None

    @property
    def books(self) -> object:
        """What keeps the buckets that it is charged to; two turns with the same one pay into the same."""
        return self.scheduler

    @property
    def waited(self) -> float:
        """Seconds from arrival to the slot of the (last) grant."""
        return (self.slot - self.arrival) / NS

    @property
    def promised_wait(self) -> float:
        """Seconds that were promised at submit."""
        return (self.promised - self.arrival) / NS

    def hear(self, signal: Signal) -> None:
        """Tell the gate how the upstream took this turn's call; a turn that is over tells nothing."""
        instance("signal", signal, Signal)
        self.scheduler.hear(self, signal)

    def grow(self, output_tokens: int) -> None:
        """Say how many output tokens there are already: more than were reserved are charged at once."""
        self.scheduler.grow(self, amount("output_tokens", output_tokens))

    def ensure_open(self) -> None:
        """Raise `ErrRateLimited` if the gate was closed since the grant: the call must not begin."""
        self.scheduler.ensure_open(self)

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


class Grant(Turn):
    """The right to make one call, from grant to settle.

    `async with scheduler.admit(…) as grant` waits for it and settles it at the end of the block. A hook's
    grant is settled by whoever called the hook.
    """

    __slots__ = ()

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


class Cover(Grant):
    """A message that a running turn has paid for: what its call tells, and uses, is that turn's.

    Settling it ends the message, and not the turn. One that used nothing leaves the turn another message to
    cover.
    """

    __slots__ = ("turn",)

    def __init__(self, turn: Turn) -> None:
        super().__init__(turn.scheduler, turn.tenant, turn.gate, turn.policy, turn.cost)
        self.turn = turn
        self.state = RUNNING
        self.arrival = self.promised = self.slot = turn.slot
        turn.free_message = False

    @property
    def books(self) -> object:
        """The turn: no bucket is charged for the message itself."""
        return self.turn

    def hear(self, signal: Signal) -> None:
        """See `Turn.hear`."""
        self.turn.hear(signal)

    def grow(self, output_tokens: int) -> None:
        """See `Turn.grow`."""
        self.turn.grow(output_tokens)

    def ensure_open(self) -> None:
        """See `Turn.ensure_open`."""
        self.turn.ensure_open()

    def settle(self, usage: Usage | None = None) -> None:
        """End the message: `usage` is added to that of the turn. A second call does nothing."""
        if usage is not None:
            instance("usage", usage, Usage)
        if self.state is not RUNNING:
            return
        self.state = ENDED
        if usage == NOTHING:
            self.turn.free_message = True
        elif usage is not None:
            had = self.turn.usage or NOTHING
            self.turn.usage = Usage(
                had.requests + usage.requests,
                had.input_tokens + usage.input_tokens,
                had.output_tokens + usage.output_tokens,
            )


def kind_of(error: BaseException) -> str:
    """What is recorded of a failure: a kind that an error names itself, or its type. Never its text."""
    kind = type(error).__name__
    with suppress(Exception):  # it is the handler's code that says it
        kind = str(getattr(error, "kind", kind))
    # What no text column takes would end the whole worker.
    return kind[:LONGEST_KIND].replace("\0", "").encode("utf-8", "replace").decode()


def is_stray(error: BaseException) -> bool:
    """Whether a cancellation is none of the running task: something that it awaited was cancelled instead."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling()


def is_cancelled(error: BaseException) -> bool:
    """Whether a job ended because somebody wanted no more of it."""
    ended = isinstance(error, (asyncio.CancelledError, GeneratorExit, SchedulerClosed))
    return ended or kind_of(error) == "cancelled"
