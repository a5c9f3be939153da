"""`waitline run --durable`: prompts wait in a database, where the same command finds them after a crash.

A job's key is made of the file of replies, the line and what it asks. So whoever starts the same command
again asks for nothing twice, while another file of replies is another errand.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from typing import Any

from agent import Agent, Sessions
from agent.postgres import PostgresSessions
from scheduler import SchedulerError, Ticket
from scheduler.cli.lines import Note, Over, noted
from scheduler.cli.options import Options
from scheduler.cli.spool import Line
from scheduler.runtime.arguments import check_name
from scheduler.runtime.durable import DurableScheduler
from scheduler.runtime.durable_ticket import DurableTicket
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import patiently
from scheduler.worker import Worker


def sessions_at(dsn: str, lease: float) -> tuple[PostgresSessions, PostgresStore]:
    """The store at a database, and its sessions. Nothing connects yet."""
    store = PostgresStore(dsn, lease=lease)
    return PostgresSessions(store), store


class DurableLines:
    """The lines of a database. What was committed stays there, whatever becomes of this process."""

    shared = True
    failures: tuple[type[Exception], ...] = (
        SchedulerError,
        TypeError,
        ValueError,
    )  # others are the database's, and go by

    def __init__(
        self, options: Options, store: PostgresStore, sessions: PostgresSessions, agent: Agent | None
    ) -> None:
        self._agent = agent
        self.sessions: Sessions = sessions
        self._timeout = options.timeout
        self._running = options.max_running
        self._store = store
        self._errand = str(options.out.resolve())
        self._scheduler = DurableScheduler(store=store, quotas=options.quota(), policy=options.policy())
        self._worker: Worker | None = None
        self._stopped = False

    @asynccontextmanager
    async def opened(self, note: Note, over: Over) -> AsyncIterator[None]:
        """Be a worker as well until the end of the block, if there is an agent."""
        async with self._scheduler, asyncio.TaskGroup() as group:
            if self._agent is not None:
                self._worker = Worker(noted(note, self._agent), self._store, concurrency=self._running)
                group.create_task(self._work(self._worker, over))
            yield
            if not self._stopped:
                self.stop()

    async def _work(self, worker: Worker, over: Over) -> None:
        await worker.run(signals=False)
        await over()

    def name_of(self, session: str) -> str:
        """A name that no other errand has: the tenant's own sessions are not continued, and not ended."""
        return f"run-{self._digest(check_name('session', session))}"

    async def join(self, line: Line, prompt: Any) -> tuple[Ticket, bool]:
        """Commit a prompt, or find the job that an earlier run committed; after one that failed, another."""
        session = None if line.session is None else self.name_of(line.session)
        key = self._digest(line.id, line.session, prompt)
        attempt = 0
        while True:
            attempt += 1
            enqueue = partial(
                self._scheduler.enqueue,
                line.tenant,
                prompt,
                session=session,
                timeout=self._timeout,
                key=f"run-{key}-{attempt}",
            )
            ticket = await patiently(enqueue)
            if ticket.new:
                return ticket, True
            await patiently(ticket.look)
            if ticket.state not in {"failed", "cancelled"}:
                return ticket, False

    def _digest(self, *parts: Any) -> str:
        return sha256(json.dumps([self._errand, *parts]).encode()).hexdigest()

    async def waited(self, ticket: Ticket) -> float:
        """Seconds from when it joined its line to its slot, whoever ran it."""
        if isinstance(ticket, DurableTicket):
            await patiently(ticket.look)
        return ticket.expected

    def stop(self) -> None:
        """The worker here claims no more; the second time it gives back what it runs."""
        self._stopped = True
        if self._worker is not None:
            self._worker.stop()

    def give_up(self, ticket: Ticket, collecting: asyncio.Task[None]) -> None:
        """Leave a prompt where it is, for other workers or the next run."""
        collecting.cancel()
