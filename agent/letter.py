"""One message of a deferred job, on its way in a batch, and what the job remembers of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import copy
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from scheduler import Job, SchedulerClosed, SchedulerError, Usage
from scheduler.upstreams import batches
from scheduler.upstreams.claude import NOTHING, Message

if TYPE_CHECKING:
    from agent.batch import Batch

PATIENCE_S = 20.0
"""How long a job that goes on elsewhere stays until it remembers its batch, which is just being created."""


class Whereabouts(NamedTuple):
    """Where a message is: which one of its run it is, its custom id, and the id of its batch.

    This is all that a job remembers.
    """

    turn: int
    number: str
    batch: str

    def __str__(self) -> str:
        return " ".join(map(str, self))

    @classmethod
    def read(cls, text: str | None) -> Whereabouts | None:
        """What was remembered, if it is this."""
        found = re.fullmatch(r"([1-9]\d{0,5}) ([\w-]{1,64}) ([!-~]+)", text or "", re.ASCII)
        return None if found is None else cls(int(found[1]), found[2], found[3])


class Letter:
    """One message of a job, on its way in a batch: see `agent.run.Sending`.

    It holds its place in the batch for the length of the ``async with`` block; outside of it nobody wants its
    answer, but where the job goes on elsewhere. `found`: where it is already, by what an earlier try of its
    job remembered.
    """

    def __init__(
        self,
        take: Callable[[Letter], Batch],
        job: Job | None,
        request: Mapping[str, Any],
        turn: int = 1,
        found: Whereabouts | None = None,
    ) -> None:
        """`take`: finds the batch that it goes with, and puts it there. `turn`: its number in its run."""
        self.name = "" if job is None else job.id
        self.body = batches.written(request)
        self.size = len(self.body) + batches.ENVELOPE_BYTES
        self.usage: Usage | None = NOTHING
        self.found = found
        self._take = take
        self._job = job
        self._turn = turn
        self._answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._message: Message | None = None
        self._batch: Batch | None = None
        self._number = ""
        self._note: asyncio.Task[None] | None = None
        self._over = False

    @property
    def message(self) -> Message:
        """The complete answer; RuntimeError before there is one."""
        if self._message is None:
            raise RuntimeError("the message is not complete")
        return self._message

    @property
    def survives(self) -> bool:
        """Whether another desk will ask for its answer if this one does not wait for it."""
        return self._job is not None and self._job.survives

    def posted(self, batch: Batch, number: str) -> None:
        """It is in a batch, under this custom id."""
        self._batch, self._number = batch, number

    def sent(self) -> None:
        """From now on it may be worked on, and be billed, whether there is an answer or not."""
        self.usage = None

    def note(self, batch_id: str, group: asyncio.TaskGroup) -> None:
        """Have the job remember that it is in this batch, which was created just now."""
        if not self._over and self.survives:
            self._note = group.create_task(self._remember(batch_id))

    async def _remember(self, batch_id: str) -> None:
        # A job that cannot remember it, say because the id is none, is sent again in the worst case.
        with suppress(Exception):
            if self._job is not None:
                await self._job.remember(str(Whereabouts(self._turn, self._number, batch_id)))

    def answered(self, answer: Message | SchedulerError, usage: Usage | None) -> None:
        """This is what became of it."""
        self.usage = usage
        if self._answer.done():
            return  # its job is just being cancelled
        if isinstance(answer, SchedulerError):
            # A copy for each: whoever raises an exception writes into it.
            self._answer.set_exception(copy(answer))
        else:
            self._answer.set_result(answer)

    async def __aenter__(self) -> Self:
        self._take(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Of a failure that came too late to be looked at, this says that nobody will.
        self._answer.cancel()
        goes_on = isinstance(error, asyncio.CancelledError | SchedulerClosed) and self.survives
        self._over = not goes_on
        if self._batch is not None:
            self._batch.drop(self._number, self)
        try:
            if goes_on and self._batch is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(PATIENCE_S):
                        await self._batch.called()
                        if self._note is not None:
                            await self._note
        finally:
            self._over = True
            if self._note is not None:
                self._note.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._message is None:
            self._message = await self._answer
        raise StopAsyncIteration
