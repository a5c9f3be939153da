"""`waitline run`: the prompts of a file, each tenant at its own rate, whatever the file's size and skew."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from agent import Agent, Reply
from scheduler import Job, Policy, Quota, Rate, Scheduler, SchedulerError, Ticket
from scheduler.cli.budget import Budget
from scheduler.cli.screen import Tally, watch
from scheduler.cli.spool import Line, Replies, Spool
from scheduler.cli.wiring import Upstream, UsageError
from scheduler.runtime.clock import MonotonicClock

WINDOW = 4
"""Jobs of a tenant that wait in its line at a time: enough that the line never runs dry."""

ACTIVE = 2_000
"""Tenants that have jobs in line at a time."""

MEMORY = 256 * 1024 * 1024
"""Bytes of prompts that are held at a time (one prompt may be larger)."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    file: Path
    out: Path
    rate: float
    burst: int
    strict: bool
    max_running: int
    timeout: float | None

    def quota(self) -> Quota:
        """The quota of every tenant."""
        try:
            return Quota(Rate(self.rate, burst=self.burst))
        except ValueError as error:
            raise UsageError(f"--rate {self.rate} --burst {self.burst}: {error}") from None

    def check(self) -> None:
        """Refuse what cannot work before anything is touched."""
        self.quota()
        if self.max_running < 1:
            raise UsageError(f"--max-running: must be at least 1, got {self.max_running}")
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise UsageError(f"--timeout: must be above 0, got {self.timeout}")
        if not self.file.is_file():
            raise UsageError(f"FILE: {self.file} is not a file")
        if self.out.resolve() == self.file.resolve():
            raise UsageError(f"--out: {self.out} is the file of prompts itself")


async def answer_file(upstream: Upstream, options: Options) -> int:
    """Run the command; returns its exit status."""
    options.check()
    complain = Console(stderr=True, highlight=False)
    spool = Spool(options.file)
    try:
        tally = Tally()
        for number, why in spool.scan():
            tally.malformed += 1
            complain.print(f"{options.file}, line {number}: {why}", markup=False, soft_wrap=True)
        replies = Replies(options.out, spool)
        try:
            for number, why in spool.untold():
                error = {"type": "Malformed", "message": why}
                replies.write({"id": None, "line": number, "tenant": None, "error": error})
            tally.total, tally.before = spool.counts()
            async with upstream.agent() as (agent, _):
                errand = Errand(options, agent, spool, replies, tally)
                with watch(tally):
                    await errand.run()
        finally:
            replies.close()
    finally:
        spool.close()
    tally.summarise(Console(highlight=False), options.out)
    return 130 if errand.stopping else 1 if tally.failed or tally.malformed else 0


class Turn:
    """A prompt on its way: its line in the file, and what to give back when it has left its tenant's line."""

    __slots__ = ("asked", "line", "started", "ticket", "window")

    def __init__(self, line: Line, window: asyncio.Semaphore, asked: int) -> None:
        self.line = line
        self.window: asyncio.Semaphore | None = window
        self.asked = asked
        self.started: int | None = None
        self.ticket: Ticket | None = None

    def leave(self) -> None:
        """Make room for the tenant's next prompt, once."""
        if self.window is not None:
            self.window.release()
            self.window = None


class Errand:
    """Everything between the file of prompts and the file of replies."""

    def __init__(self, options: Options, agent: Agent, spool: Spool, replies: Replies, tally: Tally) -> None:
        self._options = options
        self._agent = agent
        self._spool = spool
        self._replies = replies
        self._tally = tally
        self._clock = MonotonicClock()
        self._memory = Budget(MEMORY)
        self._turns: dict[str, Turn] = {}
        self._feeding: set[asyncio.Task[None]] = set()
        self._begun: set[tuple[str, str]] = set()
        self.stopping = False

    async def run(self) -> None:
        """Feed, collect, and stop cleanly when asked to."""
        policy = Policy.strict() if self._options.strict else Policy(max_wait=None, max_queue=10**9)
        scheduler = Scheduler(
            self._handle,
            quotas=self._options.quota(),
            policy=policy,
            max_waiting=10**9,
            max_running=self._options.max_running,
            clock=self._clock,
        )
        active = asyncio.Semaphore(ACTIVE)
        with self._interruptible():
            async with scheduler, asyncio.TaskGroup() as group:
                self._feeding.add(group.create_task(self._feed_all(scheduler, group, active)))

    # --- feeding ------------------------------------------------------------------------------------

    async def _feed_all(
        self, scheduler: Scheduler, group: asyncio.TaskGroup, active: asyncio.Semaphore
    ) -> None:
        """Set the tenants going, so many at a time."""
        for tenant, count in self._spool.tenants():
            await active.acquire()
            task = group.create_task(self._feed(scheduler, group, tenant, count))
            self._feeding.add(task)
            task.add_done_callback(lambda _: active.release())
            task.add_done_callback(self._feeding.discard)

    async def _feed(self, scheduler: Scheduler, group: asyncio.TaskGroup, tenant: str, count: int) -> None:
        """Put a tenant's prompts in its line, a few ahead of its bucket."""
        window = asyncio.Semaphore(WINDOW)
        self._tally.begin(tenant, count)
        for line in self._spool.unanswered(tenant):
            await window.acquire()
            await self._memory.acquire(line.size)
            turn = Turn(line, window, self._clock.now())
            try:
                await self._join(scheduler, turn)
            except (SchedulerError, ValueError, TypeError) as error:
                self._failed(turn, error)
                await self._forget(turn)
            else:
                group.create_task(self._collect(turn))
        for _ in range(WINDOW):
            await window.acquire()

    async def _join(self, scheduler: Scheduler, turn: Turn) -> None:
        """Put one prompt in its tenant's line."""
        line, prompt = turn.line, self._spool.prompt(turn.line)
        if line.session is not None and (line.tenant, line.session) not in self._begun:
            await self._recall(line, line.session)
        turn.asked = self._clock.now()
        turn.ticket = await scheduler.enqueue(
            line.tenant, prompt, session=line.session, timeout=self._options.timeout
        )
        self._turns[turn.ticket.id] = turn
        self._tally.joined(line.tenant)

    async def _recall(self, line: Line, session: str) -> None:
        """Give a conversation back what an earlier run of this command had it say."""
        self._begun.add((line.tenant, session))
        said = [
            message
            for earlier in self._spool.earlier_in_session(line)
            if earlier.reply is not None
            for message in (
                {"role": "user", "content": self._spool.prompt(earlier)},
                {"role": "assistant", "content": self._replies.read(earlier.reply)},
            )
        ]
        if said:
            known = await self._agent.sessions.named(line.tenant, session)
            async with self._agent.sessions.turn(known.id) as conversation:
                await conversation.append(said)

    # --- running ------------------------------------------------------------------------------------

    async def _handle(self, job: Job) -> Reply:
        """Note when a prompt starts, and send it."""
        turn = self._turns[job.id]
        if turn.started is None:
            turn.started = self._clock.now()
            self._tally.started(turn.line.tenant)
            turn.leave()
        return await self._agent.handle(job)

    async def _collect(self, turn: Turn) -> None:
        """Wait for a prompt's reply, and write down what became of it."""
        if turn.ticket is None:
            return
        try:
            reply = await turn.ticket.result()
        except SchedulerError as error:
            if not self.stopping or getattr(error, "kind", "") != "cancelled":
                self._failed(turn, error)
        else:
            self._done(turn, turn.ticket, reply)
        await self._forget(turn)

    def _done(self, turn: Turn, ticket: Ticket, reply: Reply) -> None:
        line = turn.line
        waited = ((turn.started or turn.asked) - turn.asked) / 1e9
        usage = {"input_tokens": reply.usage.input_tokens, "output_tokens": reply.usage.output_tokens}
        place = self._replies.write(
            {
                "id": line.id,
                "line": line.number,
                "tenant": line.tenant,
                "reply": reply.text,
                "waited_s": round(waited, 6),
                "promised_s": round(ticket.wait, 6),
                "usage": usage,
            }
        )
        self._spool.answered(line.id, place)
        self._tally.answered(line.tenant, waited, ticket.wait, ticket.delayed_by)

    def _failed(self, turn: Turn, error: Exception) -> None:
        line = turn.line
        # The texts of these errors hold ids, sizes and times, and no prompt.
        record: dict[str, object] = {"type": type(error).__name__, "message": str(error)}
        retry_after = getattr(error, "retry_after", None)
        if retry_after is not None:
            record["retry_after_s"] = retry_after
        self._replies.write({"id": line.id, "line": line.number, "tenant": line.tenant, "error": record})
        self._tally.refused(line.tenant, turn.started is not None, turn.ticket is not None)

    async def _forget(self, turn: Turn) -> None:
        """The prompt is over, one way or another."""
        line = turn.line
        turn.leave()
        await self._memory.release(line.size)
        if turn.ticket is not None:
            del self._turns[turn.ticket.id]
        if line.session is not None and self._spool.is_last_of_session(line):
            known = await self._agent.sessions.named(line.tenant, line.session)
            await self._agent.end_session(known.id)
            self._begun.discard((line.tenant, line.session))

    # --- stopping -----------------------------------------------------------------------------------

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C, or SIGTERM: first let the running prompts finish; the second time cancel them."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        again, self.stopping = self.stopping, True
        self._tally.stopping = True
        for task in self._feeding:
            task.cancel()
        for turn in list(self._turns.values()):
            if turn.ticket is not None and (again or turn.started is None):
                turn.ticket.cancel()
