"""`waitline run`: the prompts of a file, each tenant at its own rate, whatever the file's size and skew."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agent import Reply
from scheduler import Job, SchedulerError, Ticket
from scheduler.cli.budget import Budget
from scheduler.cli.lines import Lines, lines_of
from scheduler.cli.options import Options
from scheduler.cli.printing import say
from scheduler.cli.screen import Tally, watch
from scheduler.cli.spool import Line, Replies, Spool
from scheduler.cli.wiring import Upstream, text_of
from scheduler.runtime.clock import MonotonicClock

WINDOW = 4
"""Jobs of a tenant that wait in its line at a time: enough that the line never runs dry."""

ACTIVE = 2_000
"""Tenants that have jobs in line at a time."""

RECORDED = 2.0
"""Seconds in which results that are recorded arrive here."""

MEMORY = 256 * 1024 * 1024
"""Bytes of prompts that are held at a time (one prompt may be larger)."""

OVERHEAD = 8 * 1024
"""Bytes that a prompt on its way takes beside its text, so that the number of those is bounded as well."""


async def answer_file(upstream: Upstream, options: Options, dsn: str | None = None) -> int:
    """Run the command, over the database at `dsn` if there is one; returns its exit status."""
    spool = Spool(options.file)
    try:
        tally = Tally()
        for number, why in spool.scan():
            tally.malformed += 1
            say(f"{options.file}, line {number}: {why}", errors=True)
        replies = Replies(options.out, spool)
        try:
            for number, why in spool.untold():
                error = {"type": "Malformed", "message": why}
                replies.write({"id": None, "line": number, "tenant": None, "error": error})
            tally.total, tally.before = spool.counts()
            async with lines_of(upstream, options, dsn) as lines:
                errand = Errand(lines, spool, replies, tally)
                with watch(tally):
                    await errand.run()
        finally:
            replies.close()
    finally:
        spool.close()
    tally.summarise(options.out)
    return 130 if errand.stopping else 1 if tally.failed or tally.malformed else 0


class Turn:
    """A prompt on its way: its line in the file, and what to give back when it has left its tenant's line."""

    __slots__ = ("asked", "collecting", "line", "new", "started", "ticket", "window")

    collecting: asyncio.Task[None]

    def __init__(self, line: Line, window: asyncio.Semaphore, asked: int) -> None:
        self.line = line
        self.window: asyncio.Semaphore | None = window
        self.asked = asked
        self.started: int | None = None
        self.new = True
        self.ticket: Ticket | None = None

    @property
    def held(self) -> int:
        """Bytes that it takes."""
        return self.line.size + OVERHEAD

    def leave(self) -> None:
        """Make room for the tenant's next prompt, once."""
        if self.window is not None:
            self.window.release()
            self.window = None


class Errand:
    """Everything between the file of prompts and the file of replies."""

    def __init__(self, lines: Lines, spool: Spool, replies: Replies, tally: Tally) -> None:
        self._lines = lines
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
        active = asyncio.Semaphore(ACTIVE)
        with self._interruptible():
            async with self._lines.opened(self._note, self._over), asyncio.TaskGroup() as group:
                self._feeding.add(group.create_task(self._feed_all(group, active)))

    # --- feeding ------------------------------------------------------------------------------------

    async def _feed_all(self, group: asyncio.TaskGroup, active: asyncio.Semaphore) -> None:
        """Set the tenants going, so many at a time."""
        for tenant, count in self._spool.tenants():
            await active.acquire()
            task = group.create_task(self._feed(group, tenant, count))
            self._feeding.add(task)
            task.add_done_callback(lambda _: active.release())
            task.add_done_callback(self._feeding.discard)

    async def _feed(self, group: asyncio.TaskGroup, tenant: str, count: int) -> None:
        """Put a tenant's prompts in its line, a few ahead of its bucket."""
        window = asyncio.Semaphore(WINDOW)
        self._tally.begin(tenant, count)
        for line in self._spool.unanswered(tenant):
            await window.acquire()
            turn = Turn(line, window, self._clock.now())
            await self._memory.acquire(turn.held)
            try:
                await self._join(turn)
            except self._lines.failures as error:
                self._failed(turn, error)
                await self._forget(turn)
            else:
                turn.collecting = group.create_task(self._collect(turn))
        for _ in range(WINDOW):
            await window.acquire()

    async def _join(self, turn: Turn) -> None:
        """Put one prompt in its tenant's line."""
        line, prompt = turn.line, self._spool.prompt(turn.line)
        if line.session is not None and (line.tenant, line.session) not in self._begun:
            await self._recall(line, line.session)
        turn.asked = self._clock.now()
        turn.ticket, turn.new = await self._lines.join(line, prompt)
        self._turns[turn.ticket.id] = turn
        self._tally.joined(line.tenant)
        if self._lines.shared:  # it may start elsewhere, and the line must not run dry
            asyncio.get_running_loop().call_later(turn.ticket.wait, turn.leave)

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
            sessions = self._lines.sessions
            known = await sessions.named(line.tenant, self._lines.name_of(session))
            async with sessions.turn(known.id) as conversation:
                if not conversation.history:  # a durable one remembers
                    await conversation.append(said)

    # --- running ------------------------------------------------------------------------------------

    def _note(self, job: Job) -> None:
        """Note when a prompt starts. In a database there are jobs of others too."""
        turn = self._turns.get(job.id)
        if turn is not None and turn.started is None:
            turn.started = self._clock.now()
            self._tally.started(turn.line.tenant)
            turn.leave()

    async def _collect(self, turn: Turn) -> None:
        """Wait for a prompt's reply, and write down what became of it."""
        if turn.ticket is None:
            return
        try:
            reply = await turn.ticket.result()
        except self._lines.failures as error:
            if not self.stopping or getattr(error, "kind", "") != "cancelled":
                self._failed(turn, error)
        else:
            await self._done(turn, turn.ticket, reply)
        await self._forget(turn)

    async def _done(self, turn: Turn, ticket: Ticket, reply: Any) -> None:
        line = turn.line
        if turn.new and turn.started is not None:
            waited = (turn.started - turn.asked) / 1e9
            self._tally.measured(waited, ticket.wait, ticket.delayed_by)
        else:
            waited = await self._lines.waited(ticket)
        usage = None
        if isinstance(reply, Reply):
            usage = {"input_tokens": reply.usage.input_tokens, "output_tokens": reply.usage.output_tokens}
        place = self._replies.write(
            {
                "id": line.id,
                "line": line.number,
                "tenant": line.tenant,
                "reply": text_of(reply),
                "waited_s": round(waited, 6),
                "promised_s": round(ticket.wait, 6),
                "usage": usage,
            }
        )
        self._spool.answered(line.id, place)
        self._tally.answered(line.tenant, turn.started is not None)

    def _failed(self, turn: Turn, error: Exception) -> None:
        line = turn.line
        kind = type(error).__name__
        # The texts of our own errors hold ids, sizes and times. Those of a handler's may hold a prompt.
        told = (self._lines.shared or turn.ticket is None) and type(error) in {TypeError, ValueError}
        ours = told or isinstance(error, SchedulerError)
        message = str(error) if ours else f"tenant {line.tenant!r}: failed with {kind}"
        record: dict[str, object] = {"type": kind, "message": message}
        retry_after = getattr(error, "retry_after", None)
        if retry_after is not None:
            record["retry_after_s"] = retry_after
        self._replies.write({"id": line.id, "line": line.number, "tenant": line.tenant, "error": record})
        self._tally.refused(line.tenant, turn.started is not None, turn.ticket is not None)

    async def _forget(self, turn: Turn) -> None:
        """The prompt is over, one way or another."""
        line = turn.line
        turn.leave()
        await self._memory.release(turn.held)
        if turn.ticket is not None:
            del self._turns[turn.ticket.id]
        if line.session is not None and self._spool.is_last_of_session(line):
            known = await self._lines.sessions.named(line.tenant, self._lines.name_of(line.session))
            await self._lines.sessions.end(known.id)
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
        self._lines.stop()
        self._give_up(not_started=not again)

    def _give_up(self, *, not_started: bool = False) -> None:
        for turn in list(self._turns.values()):
            if turn.ticket is not None and (turn.started is None or not not_started):
                self._lines.give_up(turn.ticket, turn.collecting)

    async def _over(self) -> None:
        """Nothing runs here any more: what went back to its line is for other workers, or the next run."""
        collecting = [turn.collecting for turn in self._turns.values() if turn.ticket is not None]
        if collecting:
            await asyncio.wait(collecting, timeout=RECORDED)
        self._give_up()
