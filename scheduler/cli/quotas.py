"""The commands over the configuration of tenants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from scheduler.cli.app import Folder, Most, app, loop
from scheduler.cli.printing import console, listing, printable, say
from scheduler.cli.usage import UsageError
from scheduler.core.quota import DIMENSIONS, Quota, Rate, full_burst

quotas = App(name="quotas", help="Apply a file of quotas to a database, and show what counts.")
app.command(quotas)


@quotas.command(name="apply")
def apply_file(file: Path, /, *, data: Folder = None) -> int:
    """Let the quotas of a TOML file count from now on.

    The file says version = N, which must grow with every change: a file that is older than what counts
    changes nothing. Quotas that were set one by one stay above it.

    Parameters
    ----------
    file
        version, [default] and [tenants.NAME] with requests, input_tokens, output_tokens, concurrency, weight.
    data
        The folder of the embedded PostgreSQL.
    """
    from scheduler.cli import durable
    from scheduler.configuration import read
    from scheduler.stores.postgres import PostgresStore

    try:
        configuration = read(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from None

    async def main(dsn: str) -> int:
        async with PostgresStore(dsn) as store:
            try:
                applied = await store.apply(configuration)
            except ValueError as error:
                raise UsageError(f"{file}: {error}") from None
        if applied.version > configuration.version:
            print(f"version {applied.version} counts, which is newer than {configuration.version}: no change")
        else:
            print(f"version {applied.version} counts: {applied.changed} known tenants have another quota now")
        return 0

    with durable.database(data) as dsn:
        return loop(lambda: main(dsn))


@quotas.command
def show(tenant: str | None = None, /, *, most: Most = 100, data: Folder = None) -> int:
    """Show quotas, and where each comes from.

    Parameters
    ----------
    tenant
        Of one tenant only.
    most
        How many.
    data
        The folder of the embedded PostgreSQL.
    """
    from scheduler.cli import durable
    from scheduler.stores.postgres import PostgresStore

    async def main(dsn: str) -> int:
        async with PostgresStore(dsn) as store:
            found = await store.limits(tenant, most)
        if tenant is not None:
            named = [row for row in found if row["name"] is not None]
            found = named or [{**row, "name": f"{tenant} (not seen yet)"} for row in found]
        if found:
            _print(found)
        else:
            say(
                "no tenants" if tenant is None else f"{printable(tenant)} was never seen: quotas= will decide"
            )
        return 0

    with durable.database(data) as dsn:
        return loop(lambda: main(dsn))


def _print(found: list[dict[str, Any]]) -> None:
    table = listing("tenant", "limits", "from")
    for row in found:
        origin = row["origin"]
        if origin == "configuration":
            origin = f"configuration, version {row['version']}"
        table.add_row(printable(row["name"] or "(others)"), spelled(row["quota"]), origin)
    console().print(table)


def spelled(quota: Quota) -> str:
    """A quota as a person reads it."""
    parts = [
        f"{name} {_rate(name, rate)}" for name in DIMENSIONS if (rate := getattr(quota, name)) is not None
    ]
    if quota.concurrency is not None:
        parts.append(f"concurrency {quota.concurrency}")
    if quota.weight != 1:
        parts.append(f"weight {float(quota.weight):g}")
    return ", ".join(parts) or "no limits"


def _rate(name: str, rate: Rate) -> str:
    return f"{float(rate.permits):g} per {float(rate.per):g} s, burst {full_burst(name, rate)}"
