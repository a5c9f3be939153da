"""Migrations: numbered files, each applied once, in order, in a transaction of its own."""

from __future__ import annotations

from asyncpg import Connection

from scheduler.errors import SchedulerError
from scheduler.stores.postgres.statements import migrations

LOCK = 7_461_697_469_641
"""Of the advisory lock under which migrations run: two processes that start at once take turns."""


class SchemaTooNew(SchedulerError):
    """The database was migrated by a newer release than this one."""


async def migrate(connection: Connection) -> list[str]:
    """Bring the schema up to date; the names of the migrations that were applied now.

    Safe from several processes at once. Raises `SchemaTooNew` if the database is ahead of this release.
    """
    applied: list[str] = []
    for number, name, text in migrations():
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", LOCK)
            await connection.execute("create schema if not exists waitline")
            await connection.execute(
                "create table if not exists waitline.migration (number integer primary key,"
                " name text not null, applied timestamptz not null default now())"
            )
            done = await connection.fetchval("select coalesce(max(number), 0) from waitline.migration")
            if done > migrations()[-1][0]:
                raise SchemaTooNew(f"the schema is at {done}, this release knows up to {migrations()[-1][0]}")
            if number <= done:
                continue
            await connection.execute(text)
            await connection.execute(
                "insert into waitline.migration (number, name) values ($1, $2)", number, name
            )
            applied.append(name)
    return applied
