"""The commands over a store, and their options."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter, validators

from scheduler.cli.app import Folder, Most, app, loop
from scheduler.cli.usage import DEFAULT_MODEL


@app.command
def worker(
    *,
    concurrency: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 256,
    lease: float = 30.0,
    keep_sessions: float | None = None,
    simulated: Annotated[bool, Parameter(negative="")] = False,
    model: str = DEFAULT_MODEL,
    max_tokens: int = 1024,
    data: Folder = None,
) -> int:
    """Run the jobs of a database in the background, until SIGTERM or Ctrl-C.

    The database is the one in WAITLINE_DATABASE_URL, or an embedded PostgreSQL. The first signal lets what
    runs finish; a second one gives it back to the line.

    Parameters
    ----------
    concurrency
        Jobs that run at the same time here.
    lease
        Seconds after which another worker takes over what this one holds, should it be lost.
    keep_sessions
        Seconds after which a conversation that nobody continues is forgotten. Never unless told.
    simulated
        Ask a simulated Claude on this machine. Otherwise ANTHROPIC_API_KEY is needed.
    model
        The model to ask.
    max_tokens
        The longest reply, in tokens.
    data
        The folder of the embedded PostgreSQL.
    """
    from scheduler.cli import durable
    from scheduler.cli.wiring import Upstream

    upstream = Upstream(simulated=simulated, model=model, max_tokens=max_tokens)
    with durable.database(data) as dsn:
        return loop(lambda: durable.work(dsn, upstream, concurrency, lease, keep_sessions))


@app.command
def submit(
    tenant: str,
    prompt: str,
    /,
    *,
    rate: float = 2.0,
    burst: int = 5,
    key: str | None = None,
    session: str | None = None,
    timeout: float | None = None,
    wait: bool = True,
    data: Folder = None,
) -> int:
    """Commit a prompt to its tenant's line, and print the reply when a worker has it.

    Parameters
    ----------
    tenant
        Who pays.
    prompt
        What to ask.
    rate
        Prompts per second of a tenant that was never seen.
    burst
        Prompts that such a tenant may save up.
    key
        At most one job of the tenant is ever accepted under it.
    session
        The conversation that it continues: any name. Jobs of one session run one after the other.
    timeout
        Seconds from here to the reply.
    wait
        Wait for the reply.
    data
        The folder of the embedded PostgreSQL.
    """
    from scheduler.cli import durable

    settings = {"key": key, "session": session, "timeout": timeout, "wait": wait}
    quota = durable.each(rate, burst)
    with durable.database(data) as dsn:
        return loop(lambda: durable.submit(dsn, tenant, prompt, quota, settings))


@app.command
def migrate(*, data: Folder = None) -> int:
    """Bring the schema of the database up to date. Safe from several processes at once."""
    from scheduler.cli import durable

    with durable.database(data) as dsn:
        return loop(lambda: durable.migrate(dsn))


jobs = App(name="jobs", help="Look at jobs, try failed ones again, cancel others.")
app.command(jobs)


@jobs.command(name="list")
def list_jobs(
    *, tenant: str | None = None, state: str | None = None, most: Most = 20, data: Folder = None
) -> int:
    """List the newest jobs.

    Parameters
    ----------
    tenant
        Of one tenant only.
    state
        waiting, running, done, failed or cancelled.
    most
        How many.
    data
        The folder of the embedded PostgreSQL.
    """
    from scheduler.cli import durable

    with durable.database(data) as dsn:
        return loop(lambda: durable.list_jobs(dsn, tenant, state, most))


@jobs.command
def show(job: int, /, *, data: Folder = None) -> int:
    """Show what is known of a job; never its prompt."""
    from scheduler.cli import durable

    with durable.database(data) as dsn:
        return loop(lambda: durable.show_job(dsn, job))


@jobs.command
def retry(job: int, /, *, data: Folder = None) -> int:
    """Let a job that failed or was cancelled wait again, with all its attempts."""
    from scheduler.cli import durable

    with durable.database(data) as dsn:
        return loop(lambda: durable.change_job(dsn, job, again=True))


@jobs.command
def cancel(job: int, /, *, data: Folder = None) -> int:
    """Cancel a job that waits or runs."""
    from scheduler.cli import durable

    with durable.database(data) as dsn:
        return loop(lambda: durable.change_job(dsn, job, again=False))
