"""Applied configuration: decided in one row, and brought to the tenants that are known in batches.

A quota that was set by hand (origin 2) is above configuration (1), which is above `quotas=` at first
sight (0).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, NamedTuple

from asyncpg import Connection

from scheduler.configuration import Configuration
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.settlement import Settlement
from scheduler.stores.postgres.statements import statement

TENANTS = 50
"""Tenants in one transaction, each with all jobs of its line."""

ORIGINS = ("quotas=", "configuration", "set_quota")
"""Where a tenant's quota comes from, as the schema numbers it."""


def digest_of(configuration: Configuration) -> str:
    """What tells another content under the same version."""
    default = configuration.default
    spelled = [None if default is None else rows.write_quota(default)]
    spelled += [
        f"{name!r} {rows.write_quota(quota)}" for name, quota in sorted(configuration.tenants.items())
    ]
    return sha256(repr(spelled).encode()).hexdigest()


async def decide(connection: Connection, configuration: Configuration) -> int:
    """Let a configuration count if none that is newer does; the version that counts.

    Raises ValueError for another content under the version that counts.
    """
    # Whoever sees a tenant for the first time holds this row shared: it is through, or comes afterwards.
    (row,) = await connection.fetch("select version, digest from waitline.configuration for update")
    known, digest = int(row["version"]), digest_of(configuration)
    if known == configuration.version and row["digest"] != digest:
        raise ValueError(f"version: {known} was applied before with another content; raise it")
    if known >= configuration.version:
        return known
    default = configuration.default
    names = sorted(configuration.tenants)
    await connection.execute("delete from waitline.configured")
    await connection.execute(
        statement("configure"),
        configuration.version,
        None if default is None else rows.write_quota(default),
        digest,
        names,
        [rows.write_quota(configuration.tenants[name]) for name in names],
    )
    return configuration.version


class Wanted(NamedTuple):
    """What a tenant's row should say."""

    name: str
    quota: str
    origin: int


async def follow(connection: Connection, after: str) -> tuple[str, int]:
    """Bring the next tenants in line with the configuration that counts now.

    Returns the name after which to go on, "" at the end, and how many quotas were changed.
    """
    page = await connection.fetch(statement("unlike"), after, TENANTS)
    if not page:
        return "", 0
    locked = await Locked.these(connection, [row["name"] for row in page])
    # Again, now that the locks are held: it may have been changed by hand, or by a newer configuration. None
    # becomes newer before this is saved, or the newer one might already have passed these tenants by.
    await connection.execute(statement("see_configuration"))
    found = await connection.fetch(statement("wanted"), list(locked.states))
    wanted = [Wanted(*row) for row in found]
    changed = [one for one in wanted if rows.write_quota(locked.states[one.name].quota) != one.quota]
    await _requota(connection, locked, changed)
    await connection.execute(
        statement("configure_tenants"),
        [one.name for one in wanted],
        [one.quota for one in wanted],
        [one.origin for one in wanted],
    )
    return page[-1]["name"], len(changed)


async def _requota(connection: Connection, locked: Locked, changed: Iterable[Wanted]) -> None:
    """Change limits with jobs waiting; those that can never fit any more fail."""
    quotas = {one.name: rows.read_quota(one.quota) for one in changed}
    if not quotas:
        return
    settlement = Settlement(locked, await locked.time(connection))
    await settlement.requota(connection, quotas)
    await settlement.save(connection)


async def limits(connection: Connection, tenant: str | None, most: int) -> list[dict[str, Any]]:
    """Quotas by tenant: `name`, `quota` (a `Quota`), `origin`, `seen`, and the `version` that is applied.

    The default of the configuration has the name None.
    """
    found = await connection.fetch(statement("limits"), tenant, most)
    return [
        {**dict(row), "quota": rows.read_quota(row["quota"]), "origin": ORIGINS[row["origin"]]}
        for row in found
    ]
