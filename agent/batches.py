"""Jobs that a ladder defers: their messages go upstream together, in message batches."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextvars import copy_context
from types import TracebackType
from typing import Any, Self

from agent.agent import Agent
from agent.arguments import at_least_one, seconds
from agent.batch import Batch
from agent.letter import Letter, Whereabouts
from agent.messages import Reply
from scheduler import Job, Retry, SchedulerClosed
from scheduler.upstreams.batches import BYTES_MAX, REQUESTS_MAX


class BatchDesk:
    """Runs deferred jobs of an agent over the Message Batches API.

    ``async with BatchDesk(agent) as desk, Scheduler(agent.handle, deferred=desk.handle, …) as scheduler: …``

    A message of a deferred job is collected for `window` seconds with those of all other tenants, or until
    there are `max_batch` of them (or as many bytes as the API takes); then they go as one batch, whose state
    is asked for every `poll` seconds, and less often once it is older than ten times that. `max_jobs`: jobs
    at the desk at once; further ones go back to their line. `draw`: random numbers from 0 up to 1, for
    backoff.

    A job of a store remembers which batch it is in. Where its worker stops or is lost the next one's desk
    waits for that batch instead of sending the message again. Other jobs are in memory: what is under way
    when the process dies is lost, although it may be billed.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        window: float = 5.0,
        poll: float = 60.0,
        max_batch: int = 10_000,
        max_jobs: int = 100_000,
        draw: Callable[[], float] = random.random,
    ) -> None:
        if not isinstance(agent, Agent):
            raise TypeError(f"agent: must be an Agent, got {type(agent).__name__}")
        if at_least_one("max_batch", max_batch) > REQUESTS_MAX:
            raise ValueError(f"max_batch: must be at most {REQUESTS_MAX}, got {max_batch!r}")
        self._agent = agent
        self._window = seconds("window", window)
        self._poll = seconds("poll", poll)
        self._max_batch = max_batch
        self._max_jobs = at_least_one("max_jobs", max_jobs)
        self._draw = draw
        self._box: Batch | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._under_way: set[Batch] = set()
        self._by_id: dict[str, Batch] = {}
        self._creating = 0
        self._overdue = False
        self._group: asyncio.TaskGroup | None = None
        self._closed = self._aborted = False
        self._quiet = asyncio.Event()
        self.jobs = 0
        """How many jobs are at the desk."""

    # --- life -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("a desk can be entered only once")
        self._group = await asyncio.TaskGroup().__aenter__()
        # That of batches, which belong to no single job.
        self._context = copy_context()
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
            if self._group is not None:
                await self._group.__aexit__(None, None, None)

    async def aclose(self, *, drain: bool = True) -> None:
        """Take no more jobs, and return when none is left: close the schedulers that use it before.

        `drain` True: all jobs at the desk get their answers, which may take a day. False: they get
        `SchedulerClosed`, and their batches are cancelled upstream; leaving the ``async with`` block waits
        for that, but not for long. But jobs of a store go on elsewhere, so their batches do too.
        """
        self._closed = True
        if not drain:
            self._abort()
        self._send()  # nobody else comes to share the batch
        while self.jobs:
            self._quiet.clear()
            await self._quiet.wait()

    def _abort(self) -> None:
        self._closed = self._aborted = True
        batches = [*self._under_way, *filter(None, [self._box])]
        for batch in batches:
            batch.end(SchedulerClosed("the desk was closed while the job was at it"))

    # --- jobs -----------------------------------------------------------------------------------------

    async def handle(self, job: Job) -> Reply:
        """Run a deferred job: the handler for ``Scheduler(…, deferred=desk.handle)``.

        As `Agent.handle`, but for its messages. `Retry`, which puts a job back in its line, is raised for
        what is worth a repeat, a request that expired included, and while `max_jobs` are here.
        `SchedulerClosed` once the desk is closed.
        """
        if self._group is None:
            raise RuntimeError("a desk must be entered before it can take jobs")
        if self._closed:
            raise SchedulerClosed("the desk is closed")
        if self.jobs >= self._max_jobs:
            raise Retry(refused=True)  # nothing was done, so it is no attempt
        self.jobs += 1
        try:
            return await self._agent.handle(job, by=Visit(self._take, job))
        finally:
            self.jobs -= 1
            if not self.jobs:
                self._quiet.set()

    # --- collecting -----------------------------------------------------------------------------------

    def _take(self, letter: Letter) -> Batch:
        """Put a letter into the batch that is being collected, or that it is in already."""
        if self._aborted:
            raise SchedulerClosed("the desk is closed")
        if letter.found is not None:
            batch = self._adopted(letter.found.batch)
            batch.add(letter)
            letter.sent()
            return batch
        if self._box is not None and self._box.size + letter.size > BYTES_MAX:
            self._send()
        box = self._box
        if box is None:
            box = self._box = Batch(self._agent.client, self._poll, self._draw, self._taken, self._poll)
            loop, window = asyncio.get_running_loop(), 0.0 if self._closed else self._window
            self._timer = loop.call_later(window, self._due, context=self._context)
        box.add(letter)
        if len(box.letters) >= self._max_batch:
            self._send()
        return box

    def _due(self) -> None:
        """The window is over. While another batch is being created the box stays open.

        So an upstream that takes none is asked by one batch, or by full ones, and not by one for each window.
        """
        self._overdue = self._creating > 0
        if not self._overdue:
            self._send()

    def _taken(self, box: Batch) -> None:
        self._creating -= 1
        if box.id is not None:
            self._by_id[box.id] = box
        if self._overdue and not self._creating:
            self._send()

    def _send(self) -> None:
        """Let go what was collected."""
        box, self._box, self._overdue = self._box, None, False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if box is not None and box.letters and self._group is not None:
            self._creating += 1
            self._depart(box, self._group)

    def _adopted(self, batch_id: str) -> Batch:
        """A batch that was created before, perhaps elsewhere; all its jobs at this desk share it."""
        known = self._by_id.get(batch_id)
        if known is not None and not known.over:
            return known
        # Those who come within the window share the first look at it.
        batch = Batch(
            self._agent.client, self._poll, self._draw, self._taken, self._window, batch_id, others=True
        )
        self._by_id[batch_id] = batch
        if self._group is not None:
            self._depart(batch, self._group)
        return batch

    def _depart(self, batch: Batch, group: asyncio.TaskGroup) -> None:
        """Let a batch go its way."""
        self._under_way.add(batch)
        task = group.create_task(batch.travel(), name="message batch", context=self._context)
        task.add_done_callback(lambda _: self._arrived(batch))

    def _arrived(self, batch: Batch) -> None:
        self._under_way.discard(batch)
        if batch.id is not None and self._by_id.get(batch.id) is batch:
            del self._by_id[batch.id]


class Visit:
    """One run of a job at a desk: how its messages go upstream. See `agent.run.Carrier`.

    Only the message that was under way when an earlier try ended is remembered. If that was not the first of
    its run (a tool was called before it) this run begins anew, and asks for another answer.
    """

    def __init__(self, take: Callable[[Letter], Batch], job: Job) -> None:
        self._take = take
        self._turn = 0
        found = Whereabouts.read(job.remembered)
        self._found = found if found is not None and found.turn == 1 else None

    def sending(self, job: Job | None, request: Mapping[str, Any]) -> Letter:
        """A message of the job that is to be sent, or was."""
        self._turn += 1
        found, self._found = self._found, None
        return Letter(self._take, job, request, self._turn, found)
