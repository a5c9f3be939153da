"""The commands over a store: a worker, a submit, and what a person asks of jobs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from scheduler import Quota, Rate, Scheduler, SchedulerError
from scheduler.cli.printing import console, listing, printable, say
from scheduler.cli.usage import UsageError, first_of
from scheduler.core.quota import NS
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.values import STATES
from scheduler.worker import Worker

if TYPE_CHECKING:
    from scheduler.cli.wiring import Upstream

DATABASE = "WAITLINE_DATABASE_URL"
"""The variable that names the database."""

TROUBLE = (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError, ValueError, OverflowError)
"""What there is to say of a database; the last two of the port or the host in its address."""


def default_folder() -> Path:
    """Where the embedded PostgreSQL keeps its data unless told otherwise."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "waitline"


@contextmanager
def database(folder: Path | None) -> Iterator[str]:
    """The database that the environment names, or an embedded one in a folder that is printed."""
    dsn = os.environ.get(DATABASE)
    if dsn and folder is None:
        with told_of(DATABASE):
            yield dsn
        return
    from scheduler.stores.postgres.embedded import Embedded

    folder = folder or default_folder()
    say(f"Database: an embedded PostgreSQL in {folder}", errors=True)
    with Embedded(folder) as server, told_of(str(folder)):
        yield server.dsn


@contextmanager
def told_of(place: str) -> Iterator[None]:
    """Have what a database refuses, and an address that is none, told in a line."""
    try:
        yield
    except Exception as error:
        first = first_of(error)
        if not isinstance(first, TROUBLE) or isinstance(first, (SchedulerError, BrokenPipeError)):
            raise
        # Of a server's error the first argument is the message alone: what else there is may hold a row.
        said = first if isinstance(first, OSError) or not first.args else first.args[0]
        advice = ": `waitline migrate` makes it" if isinstance(first, asyncpg.InvalidSchemaNameError) else ""
        raise UsageError(f"{place}: {said or type(first).__name__}{advice}") from None


async def work(
    dsn: str, upstream: Upstream, concurrency: int, lease: float, keep_sessions: float | None
) -> int:
    """Run jobs until SIGTERM or Ctrl-C: the first finishes what runs, the second gives it back."""
    from agent.postgres import PostgresSessions

    try:
        store = PostgresStore(dsn, lease=lease, keep_sessions=keep_sessions)
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('_', '-', 1)}") from None
    async with upstream.agent(sessions=PostgresSessions(store)) as (agent, _):
        worker = Worker(agent.handle, store, concurrency=concurrency)
        say(f"Worker {worker.name} runs up to {concurrency} jobs at once", errors=True)
        await worker.run()
    say(f"Worker {worker.name} has ended: {worker.done} tries recorded", errors=True)
    return 0


async def submit(dsn: str, tenant: str, prompt: str, quota: Quota, settings: dict[str, Any]) -> int:
    """Commit a prompt, and print its reply unless nobody waits for it."""
    wait = settings.pop("wait")
    async with Scheduler(store=PostgresStore(dsn), quotas=quota) as scheduler:
        try:
            ticket = await scheduler.enqueue(tenant, prompt, **settings)
        except (TypeError, ValueError) as error:
            option = "--" if str(error).partition(":")[0] in settings else ""
            raise UsageError(f"{option}{error}") from None
        place = f"position {ticket.position}, promised in {ticket.wait:.3f} s"
        say(f"Job {ticket.id} of {printable(tenant)}: {place}", errors=True)
        if wait:
            from scheduler.cli.wiring import text_of

            say(text_of(await ticket.result()))
    return 0


async def migrate(dsn: str) -> int:
    """Bring the schema up to date, and say what was applied."""
    from scheduler.stores.postgres.migrate import migrate as apply

    connection = await asyncpg.connect(dsn)
    try:
        applied = await apply(connection)
    finally:
        await connection.close()
    for name in applied:
        print(f"applied {name}")
    if not applied:
        print("nothing to do")
    return 0


async def list_jobs(dsn: str, tenant: str | None, state: str | None, most: int) -> int:
    """Print a table of the newest jobs."""
    if state is not None and state not in STATES:
        raise UsageError(f"--state: must be one of {', '.join(STATES)}, got {state!r}")
    number = None if state is None else STATES.index(state)
    async with PostgresStore(dsn, migrate=False) as store:
        found = await store.list_jobs(tenant, number, None, most)
    table = listing("id", "tenant", "state", "attempts", "waits or waited, s", "why")
    for job in found:
        table.add_row(
            str(job["id"]),
            printable(job["tenant"]),
            STATES[job["state"]],
            str(job["attempt"]),
            _waited(job),
            printable(job["kind"] or ""),
        )
    console().print(table if found else "no jobs")
    return 0


def _waited(job: dict[str, Any]) -> str:
    end = job["slot"] or job["finished"] or job["now"]
    return f"{max(0, end - job['arrival']) / NS:.3f}"


async def show_job(dsn: str, job: int) -> int:
    """Print all that is known of a job but its prompt and its result."""
    async with PostgresStore(dsn, migrate=False) as store:
        found = await store.list_jobs(None, None, job, 1)
    if not found:
        raise UsageError(f"job: there is none with id {job}")
    for name, value in found[0].items():
        if value is not None and name != "now":
            say(f"{name}: {_readable(name, value)}")
    return 0


def _readable(name: str, value: Any) -> str:
    """A column as a person reads it: times in UTC, the state by its name."""
    if name in ("arrival", "promised", "slot", "returns", "finished"):
        return datetime.fromtimestamp(value / NS, UTC).isoformat(timespec="milliseconds")
    return STATES[value] if name == "state" else printable(str(value))


async def change_job(dsn: str, job: int, again: bool) -> int:
    """Let a job that failed be tried again, or cancel one."""
    async with PostgresStore(dsn, migrate=False) as store:
        if again:
            try:
                changed = await store.revive(job)
            except ValueError as error:
                raise UsageError(str(error)) from None
        else:
            found = await store.list_jobs(None, None, job, 1)
            changed = bool(found) and await store.cancel(job, found[0]["tenant"]) is not None
    if not changed:
        wanted = "failed or was cancelled" if again else "waits or runs"
        raise UsageError(f"job: there is none with id {job} that {wanted}")
    print(f"job {job} {'waits again' if again else 'is cancelled'}")
    return 0


def each(rate: float, burst: int) -> Quota:
    """The quota of a tenant that was never seen."""
    try:
        return Quota(Rate(rate, burst=burst))
    except (TypeError, ValueError) as error:
        raise UsageError(f"--rate, --burst: {error}") from None
