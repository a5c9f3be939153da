"""The lines through which `waitline run` sends its prompts: in memory, or in a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from agent import Agent, Reply, Sessions
from scheduler import Handler, Job, Scheduler, Ticket
from scheduler.cli.options import Options
from scheduler.cli.spool import Line
from scheduler.cli.wiring import Upstream

Note = Callable[[Job], None]
Over = Callable[[], Awaitable[None]]


class Lines(Protocol):
    """Where prompts wait, and how they get to the agent."""

    sessions: Sessions
    shared: bool
    """Whether other processes run jobs too, so that not every start is seen here."""
    failures: tuple[type[Exception], ...]
    """Errors that are the end of one prompt, and not of them all."""

    def opened(self, note: Note, over: Over) -> AbstractAsyncContextManager[None]:
        """Run jobs until the end of the block; `note` hears of each when it starts.

        `over` is awaited if they end before it: what was running then may have gone back to its line.
        """

    def name_of(self, session: str) -> str:
        """What a session of the file is called there."""

    async def join(self, line: Line, prompt: Any) -> tuple[Ticket, bool]:
        """Put a prompt in its tenant's line. False: it was in line, or answered, before this run."""

    async def waited(self, ticket: Ticket) -> float:
        """Seconds that a job waited which was not seen to start here."""

    def stop(self) -> None:
        """Start no more jobs here. The second time: stop those that run."""

    def give_up(self, ticket: Ticket, collecting: asyncio.Task[None]) -> None:
        """Do not wait for a prompt any longer."""


class MemoryLines:
    """The lines of a scheduler in this process, which are gone with it."""

    shared = False
    failures: tuple[type[Exception], ...] = (Exception,)  # of the handler, whatever they are

    def __init__(self, options: Options, agent: Agent) -> None:
        self._options = options
        self._agent = agent
        self.sessions = agent.sessions
        self._scheduler: Scheduler

    @asynccontextmanager
    async def opened(self, note: Note, over: Over) -> AsyncIterator[None]:
        """Run jobs until the end of the block."""
        self._scheduler = Scheduler(
            noted(note, self._agent),
            quotas=self._options.quota(),
            policy=self._options.policy(),
            max_waiting=10**9,
            max_running=self._options.max_running,
        )
        async with self._scheduler:
            yield

    def name_of(self, session: str) -> str:
        """Its own name: nobody else has sessions here."""
        return session

    async def join(self, line: Line, prompt: Any) -> tuple[Ticket, bool]:
        """Put a prompt in its tenant's line."""
        timeout = self._options.timeout
        return await self._scheduler.enqueue(line.tenant, prompt, session=line.session, timeout=timeout), True

    async def waited(self, ticket: Ticket) -> float:
        """Seconds that a job waited."""
        return ticket.expected

    def stop(self) -> None:
        """Nothing to do: jobs start only while somebody waits for them."""

    def give_up(self, ticket: Ticket, collecting: asyncio.Task[None]) -> None:
        """Withdraw a prompt, or cancel the call."""
        ticket.cancel()


def noted(note: Note, agent: Agent) -> Handler:
    """An agent's handler that says what it starts."""

    async def handle(job: Job) -> Reply:
        note(job)
        return await agent.handle(job)

    return handle


@asynccontextmanager
async def lines_of(upstream: Upstream, options: Options, dsn: str | None) -> AsyncIterator[Lines]:
    """The lines that the command line asked for: over the database at `dsn`, if there is one."""
    if dsn is None:
        async with upstream.agent() as (agent, _):
            yield MemoryLines(options, agent)
        return
    from scheduler.cli.durable_lines import DurableLines, sessions_at

    sessions, store = sessions_at(dsn, options.lease)
    if not options.worker:
        yield DurableLines(options, store, sessions, None)
        return
    async with upstream.agent(sessions=sessions) as (agent, _):
        yield DurableLines(options, store, sessions, agent)
