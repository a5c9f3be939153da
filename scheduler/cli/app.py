"""The commands and their options."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, validators

from scheduler.cli.printing import say
from scheduler.cli.usage import DEFAULT_MODEL, UsageError, first_of
from scheduler.errors import SchedulerError

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C or SIGTERM stopped."""

Folder = Annotated[Path | None, Parameter(name="--data")]
"""Where the embedded PostgreSQL keeps its data, whatever WAITLINE_DATABASE_URL says."""

Port = Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65_535))]
"""A port to listen on."""

Most = Annotated[int, Parameter(validator=validators.Number(gte=1, lte=1_000_000))]
"""How many rows a table has at most."""

app = App(
    name="waitline",
    help="A line and a token bucket for each tenant, in front of the Anthropic API.",
    version_flags=["--version"],
    help_on_error=False,
)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status."""
    try:
        status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        say(f"waitline: {error}", errors=True, style="red")
        say("Try: waitline --help", errors=True)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        first = first_of(error)
        if isinstance(first, BrokenPipeError):
            # Or what is left is tried again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        if not isinstance(first, (UsageError, SchedulerError, OSError)):
            raise
        say(f"waitline: {first}", errors=True, style="red")
        return 2
    return status if isinstance(status, int) else 0


def loop(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a command's coroutine."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, before)  # whoever listened to it on the loop has set it to its default


def interrupt(number: int, frame: FrameType | None) -> None:
    """Let SIGTERM be what Ctrl-C is: blocks end, and with them what they started."""
    heard = signal.getsignal(signal.SIGINT)
    (heard if callable(heard) else signal.default_int_handler)(number, frame)


@app.command
def demo(
    *,
    live: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
    model: str = DEFAULT_MODEL,
) -> int:
    """Show in half a minute what a line does: four scenes against a simulated Claude on this machine.

    The status is 0 only if every prompt was answered in order, and no promise was missed by more than three
    times what a bare timer misses in the same run (both at the 99th percentile).

    Parameters
    ----------
    live
        Use the real API with ANTHROPIC_API_KEY instead. About 250 short prompts.
    json
        Print the events, one JSON object a line, instead of tables.
    model
        The model to ask.
    """
    from scheduler.cli.demo import show
    from scheduler.cli.wiring import Upstream

    return loop(lambda: show(Upstream(simulated=not live, model=model), as_json=json))


@app.command(name="run")
def run_file(
    file: Path,
    /,
    *,
    out: Path | None = None,
    rate: float = 2.0,
    burst: int = 5,
    strict: Annotated[bool, Parameter(negative="")] = False,
    simulated: Annotated[bool, Parameter(negative="")] = False,
    model: str = DEFAULT_MODEL,
    max_tokens: int = 1024,
    max_running: int = 256,
    timeout: float | None = None,
    durable: Annotated[bool, Parameter(negative="")] = False,
    worker: bool = True,
    lease: float = 30.0,
    data: Folder = None,
) -> int:
    """Send the prompts of a file, each tenant at its own rate, and write every reply as it comes.

    A line of FILE is {"tenant": …, "prompt": …}, with "id" and "session" if you like. A line of the output is
    {"id", "line", "tenant", "reply", "waited_s", "promised_s", "usage"}, or has an "error". Ctrl-C stops
    cleanly; the same command goes on where it stopped, and tries again what failed.

    With --durable they wait in the database of WAITLINE_DATABASE_URL, or in an embedded PostgreSQL: whatever
    dies, the same command asks for nothing again that was answered.

    Parameters
    ----------
    file
        The prompts, one JSON object a line. The file may be larger than memory.
    out
        Where replies go: FILE.replies.jsonl unless told otherwise.
    rate
        Prompts per second for each tenant.
    burst
        Prompts that a tenant may save up.
    strict
        Refuse what cannot start at once instead of letting it wait.
    simulated
        Ask a simulated Claude on this machine; otherwise ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL count.
    model
        The model to ask.
    max_tokens
        The longest reply, in tokens.
    max_running
        Prompts that are answered at the same time, over all tenants.
    timeout
        Seconds for each prompt, from joining its line to its reply.
    durable
        Let prompts wait in a database. Every `waitline worker` there answers them, with its own model.
    worker
        Be such a worker too, also for what others submitted there. Without it nothing is sent from here.
    lease
        Seconds after which what this command runs is taken over, should it be killed.
    data
        The folder of the embedded PostgreSQL.
    """
    from scheduler.cli.options import Options

    out = out or Path(f"{file}.replies.jsonl")
    options = Options(file, out, rate, burst, strict, max_running, timeout, worker, lease)
    options.check()
    database = _database(durable, worker, data)
    from scheduler.cli.prompts import answer_file  # not before the checks: the SDK takes a second
    from scheduler.cli.wiring import Upstream

    upstream = Upstream(simulated=simulated, model=model, max_tokens=max_tokens)
    with database as dsn:
        return loop(lambda: answer_file(upstream, options, dsn))


def _database(durable: bool, worker: bool, data: Path | None) -> AbstractContextManager[str | None]:
    """The database in which the prompts of a file wait, if they are to wait in one."""
    if durable:
        from scheduler.cli.durable import database

        return database(data)
    if data is not None or not worker:
        raise UsageError(f"{'--no-worker' if data is None else '--data'}: needs --durable")
    return nullcontext()


@app.command
def upstream(*, port: Port = 8700, seed: int = 0, config: Path | None = None) -> int:
    """Run a simulated Claude API on this machine until Ctrl-C, to test applications against.

    Parameters
    ----------
    port
        The port on 127.0.0.1; 0 takes a free one.
    seed
        Makes latencies, lengths and faults come out the same again.
    config
        A TOML or JSON file with limits, latencies, faults and scripted answers.
    """
    from scheduler.testing import ClaudeConfig, ConfigError, serve

    try:
        settings = ClaudeConfig() if config is None else ClaudeConfig.load(config)
    except ConfigError as error:
        raise UsageError(f"--config: {error}") from None

    def ready(base_url: str) -> None:
        say(f"A simulated Claude listens on {base_url}")
        key = "anything" if settings.api_keys is None else "(one of api_keys)"
        say(f"Point a client at it: ANTHROPIC_BASE_URL={base_url} ANTHROPIC_API_KEY={key}")
        sys.stdout.flush()

    async def forever() -> int:
        await serve(settings, seed=seed, port=port, on_ready=ready)
        return 0

    return loop(forever)
