"""The commands over the gates that tenants share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from cyclopts import App

from scheduler.cli.app import Folder, app, loop
from scheduler.cli.printing import console, listing, number, printable, say
from scheduler.cli.usage import UsageError
from scheduler.runtime.reports import statistics_of
from scheduler.runtime.values import GateStatistics

if TYPE_CHECKING:
    from scheduler.stores.postgres import PostgresStore

gates = App(name="gates", help="Look at the gates that tenants share, open closed ones, drop others.")
app.command(gates)


@gates.command
def show(*, data: Folder = None) -> int:
    """Show how each gate is: what runs and waits there, what it allows and holds, and whether it is open.

    Parameters
    ----------
    data
        The folder of the embedded PostgreSQL.
    """
    from scheduler.cli import durable
    from scheduler.stores.postgres import PostgresStore

    async def main(dsn: str) -> int:
        async with PostgresStore(dsn) as store:
            found, now = await store.hearing.see()
        if not found:
            say("no gates: gates= declares them")
            return 0
        table = listing("gate", "running", "waiting", "per minute", "held", "state")
        for name in sorted(found):
            gate, waiting = found[name]
            table.add_row(printable(name), *spelled(statistics_of(gate, waiting, now)))
        console().print(table)
        return 0

    with durable.database(data) as dsn:
        return loop(lambda: main(dsn))


@gates.command
def resume(gate: str, /, *, data: Folder = None) -> int:
    """Open a gate that is closed or paused, since you know that its upstream takes calls again.

    Parameters
    ----------
    gate
        Its name.
    data
        The folder of the embedded PostgreSQL.
    """
    return _change(data, lambda store: store.hearing.resume([gate]), f"{printable(gate)} is open")


@gates.command
def drop(gate: str, /, *, data: Folder = None) -> int:
    """Forget a gate that no scheduler declares any more, with what was learned there.

    Not while jobs wait or run there. A scheduler that still declares it makes it again when it starts.

    Parameters
    ----------
    gate
        Its name.
    data
        The folder of the embedded PostgreSQL.
    """
    return _change(data, lambda store: store.hearing.drop(gate), f"{printable(gate)} is gone")


def spelled(gate: GateStatistics) -> tuple[str, str, str, str, str]:
    """What a row says: running, waiting, per minute, held, state."""
    running = str(gate.running) if gate.slots is None else f"{gate.running} of {gate.slots}"
    state = "closed: a spending limit was reached" if gate.closed else "open"
    if gate.closed:
        state += f", asks again in {gate.paused:.0f} s" if gate.paused else ", the next call asks"
    elif gate.paused:
        state = f"paused for {gate.paused:.1f} s"
    limits = ", ".join(f"{name} {number(limit)}" for name, limit in gate.limits.items())
    levels = ", ".join(f"{name} {number(level)}" for name, level in gate.levels.items())
    return running, str(gate.waiting), limits or "no limits", levels, state


def _change(data: Folder, change: Callable[[PostgresStore], Awaitable[None]], said: str) -> int:
    from scheduler.cli import durable
    from scheduler.stores.postgres import PostgresStore

    async def main(dsn: str) -> int:
        async with PostgresStore(dsn) as store:
            try:
                await change(store)
            except ValueError as error:
                raise UsageError(str(error)) from None
        say(said)
        return 0

    with durable.database(data) as dsn:
        return loop(lambda: main(dsn))
