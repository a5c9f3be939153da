"""Migrations are applied once, whoever starts at the same time, and the schema keeps its promises."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

import scheduler.stores.postgres.migrate as migrating
from scheduler.stores.postgres.migrate import SchemaTooNew, migrate
from scheduler.stores.postgres.statements import migrations

ALL = [name for _, name, _ in migrations()]
LAST = len(ALL)


@pytest.fixture
async def empty(empty_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database with nothing in it."""
    connection = await asyncpg.connect(empty_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def migrated(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database that has the schema, and the tenant `acme`."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "insert into waitline.tenant (name, quota, zeros, work, as_of) values ('acme', '{}', '{0}', '{0}', 0)"
    )
    yield connection
    await connection.close()


async def done(connection: asyncpg.Connection) -> list[str]:
    """The migrations that the database says it has, in order."""
    return [
        row["name"] for row in await connection.fetch("select name from waitline.migration order by number")
    ]


def and_then(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Make this release have one migration more."""
    longer = (*migrations(), (LAST + 1, "more.sql", text))
    monkeypatch.setattr(migrating, "migrations", lambda: longer)


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [number for number, _, _ in migrations()] == list(range(1, LAST + 1))
    assert LAST >= 1


async def test_migrations_are_applied_once_and_in_order(empty: asyncpg.Connection) -> None:
    assert await migrate(empty) == ALL
    assert await done(empty) == ALL
    assert await migrate(empty) == []
    assert await done(empty) == ALL


async def test_of_eight_that_start_at_once_one_migrates(empty_dsn: str) -> None:
    connections = await asyncio.gather(*(asyncpg.connect(empty_dsn) for _ in range(8)))
    applied = await asyncio.gather(*map(migrate, connections))
    # They take turns at each migration, so it need not be the same one that applies them all.
    assert sorted(name for names in applied for name in names) == ALL
    assert await done(connections[0]) == ALL
    await asyncio.gather(*(connection.close() for connection in connections))


async def test_a_release_with_more_migrations_applies_only_those(
    migrated: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    and_then(monkeypatch, "create table waitline.more ()")
    assert await migrate(migrated) == ["more.sql"]
    assert await done(migrated) == [*ALL, "more.sql"]
    assert await migrated.fetchval("select count(*) from waitline.tenant") == 1


async def test_a_migration_that_fails_leaves_nothing_behind(
    empty: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        and_then(broken, "create table waitline.half (); select 1 / 0")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await migrate(empty)
    assert await done(empty) == ALL, "those before it stay"
    assert await empty.fetchval("select to_regclass('waitline.half')") is None
    and_then(monkeypatch, "create table waitline.half ()")
    assert await migrate(empty) == ["more.sql"]


async def test_an_older_release_leaves_a_newer_schema_alone(
    empty: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        and_then(newer, "create table waitline.more ()")
        await migrate(empty)
    with pytest.raises(SchemaTooNew, match=rf"the schema is at {LAST + 1}, this release knows up to {LAST}"):
        await migrate(empty)
    assert await done(empty) == [*ALL, "more.sql"]


JOB = {
    "id": "1", "tenant": "'acme'", "state": "0", "place": "0", "arrival": "0", "promised": "0",
    "cost": "'{1,0,0}'", "prompt": "'\"hello\"'",
}  # fmt: skip
"""A waiting job, as SQL."""

RUNS = {"state": "1", "place": "null", "worker": "'w'", "lease": "9"}
ENDED = {"state": "2", "place": "null", "finished": "9"}


async def insert(connection: asyncpg.Connection, job: dict[str, str]) -> None:
    await connection.execute(
        f"insert into waitline.job ({', '.join(job)}) values ({', '.join(job.values())})"
    )


@pytest.mark.parametrize(
    "change",
    [{}, {"place": "null", "returns": "5"}, RUNS, ENDED, ENDED | {"prompt": "null"}],
    ids=["waiting", "in backoff", "running", "done", "without its prompt"],
)
async def test_a_job_may_be(migrated: asyncpg.Connection, change: dict[str, str]) -> None:
    await insert(migrated, JOB | change)
    assert await migrated.fetchval("select state from waitline.job") == int(change.get("state", "0"))


@pytest.mark.parametrize(
    "change",
    [
        {"state": "5"},
        {"cost": "'{1}'"},
        {"head_start": "-1"},
        {"attempt": "-1"},
        {"prompt": "null"},
        {"lease": "9"},
        {"worker": "'w'"},
        {"finished": "9"},
        {"key": "'k'"},
        {"digest": "'d'"},
        RUNS | {"place": "0"},
        RUNS | {"returns": "0"},
        RUNS | {"lease": "null"},
        RUNS | {"worker": "null"},
        ENDED | {"finished": "null"},
        ENDED | {"lease": "9"},
    ],
    ids=str,
)
async def test_a_job_may_not_be(migrated: asyncpg.Connection, change: dict[str, str]) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await insert(migrated, JOB | change)


async def test_a_job_has_a_tenant_that_exists(migrated: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await insert(migrated, JOB | {"tenant": "'nobody'"})
    await insert(migrated, JOB)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await migrated.execute("delete from waitline.tenant")


async def test_a_tenant_uses_a_key_once(migrated: asyncpg.Connection) -> None:
    keyed = {"key": "'k'", "digest": "'d'"}
    await insert(migrated, JOB | keyed)
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(migrated, JOB | keyed | {"id": "2"})
    await insert(migrated, JOB | {"id": "3"})
    await insert(migrated, JOB | {"id": "4"})


@pytest.mark.parametrize(
    "change",
    ["name = ''", "name = repeat('x', 513)", "origin = 3", "running = -1", "waiting = -1", "work = '{0,0}'"],
)
async def test_a_tenant_may_not_be(migrated: asyncpg.Connection, change: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await migrated.execute(f"update waitline.tenant set {change}")


async def test_the_clock_counts_nanoseconds_since_1970(migrated: asyncpg.Connection) -> None:
    """Both readings are the database's: the outer ones surround the one between them."""
    row = await migrated.fetchrow(
        "select extract(epoch from statement_timestamp()), waitline.now_ns(),"
        " extract(epoch from clock_timestamp())"
    )
    assert row is not None
    before, now, after = row
    assert before * 10**9 <= now <= after * 10**9
