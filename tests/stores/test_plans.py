"""What the store's operations read does not grow with blocked jobs, blocked tenants or finished rows.

Every operation runs on a filled database, with generic plans, as in production: made while the tables were
small, analyzed or not, or after they were filled and analyzed. Looked at are the server's own counters for
the transaction, which see into functions too: no table is walked over, the expected indexes are used, and of
those a bounded number of entries is read. That the check has teeth is shown: without an index it fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg
import pytest

from scheduler import Cost, Policy, Quota, Rate, Usage
from scheduler.stores.postgres import claiming, plain, rows, settling, submitting
from scheduler.stores.postgres.connections import PINNED
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import DONE, Again, Ended, Request
from tests.stores.servers import Server

pytestmark = pytest.mark.timeout(90)

CROWD = 3_000
"""Of each kind of row that must not matter."""

BATCH = 10
"""Jobs that an operation is about."""

MOST = 200
"""Entries of indexes that an operation may read, over all of its statements."""

SECOND = 10**9
HOUR = 3600 * SECOND
QUOTA, PATIENT = Quota(Rate(1000, burst=100)), Policy(max_wait=None)

TENANTS = """
insert into waitline.tenant (name, quota, zeros, work, as_of, waiting, running, due, tightest)
select
    u.name, $3, '{0}', '{0}', waitline.now_ns(), 100000, 100, waitline.now_ns() + u.due,
    waitline.now_ns() + $4
from (
    values ('acme', 0), ('long', 0), ('blocked', null), ('lost', null), ('plain', -$4::bigint)
    union all select 'later-' || n, $4::bigint from generate_series($1::bigint, $2) as n
    union all select 'due-' || n, 1 from generate_series($1::bigint, $2) as n
    union all select 'never-' || n, null from generate_series($1::bigint, $2) as n
) as u (name, due)
on conflict do nothing
"""

JOBS = """
with kinds (tenant, state, crowd, in_line, returns, ends, session, key, home) as (
    values
        -- what an operation is about
        ('acme', 0, false, true, null::bigint, null::bigint, null::text, null::text, null::text),
        ('acme', 0, false, true, null, $4::bigint, null, null, 'here'),
        ('acme', 1, false, false, null, $4::bigint, 'chat', 'running', null),
        ('acme', 2, false, false, null, -$4::bigint, null, null, null),
        ('long', 1, false, false, null, $4::bigint, null, null, null),
        ('lost', 1, false, false, null, -$4::bigint, null, null, null),
        ('lost', 0, false, true, null, -$4::bigint, null, null, null),
        ('lost', 0, false, true, null, -$4::bigint, null, null, 'gone'),
        ('plain', 0, false, true, null, $4::bigint, null, null, null),
        -- what must not matter
        ('acme', 2, true, false, null, null, 'chat', 'done', null),
        ('acme', 0, true, false, $4::bigint, null, null, null, null),
        ('acme', 0, true, false, null, null, 'crowd', null, null),
        ('plain', 2, true, false, null, null, null, null, null),
        ('plain', 0, true, true, null, $4::bigint, null, null, null),
        ('plain', 0, true, false, null, null, 'crowd', null, null),
        ('long', 0, true, true, null, $4::bigint, null, 'long', null),
        ('blocked', 0, true, true, null, $4::bigint, null, 'blocked', null),
        ('blocked', 0, true, true, null, $4::bigint, null, null, 'elsewhere'),
        ('later-', 0, true, true, null, $4::bigint, null, null, null),
        ('later-', 1, true, false, null, $4::bigint, null, null, null),
        ('due-', 0, true, true, null, null, null, null, null),
        ('never-', 0, true, true, null, null, null, null, null),
        ('never-', 3, true, false, null, null, null, null, null)
), clock as (
    select waitline.now_ns() as now
)
insert into waitline.job (
    id, tenant, state, place, arrival, promised, returns, deadline, lease, worker, finished, session, key,
    digest, cost, prompt, home, tries
)
select
    nextval('waitline.job_number'), case when tenant like '%-' then tenant || n else tenant end, state,
    case when in_line then now + n end, now + n, now + n, now + returns,
    case when state = 0 and home is null then now + ends end,
    case when state = 1 or home is not null then now + ends end,
    case when state = 1 then 'w' end, case when state > 1 then now + coalesce(ends, 0) end, session, key || n,
    case when key is not null then ''::bytea end, '{1,0,0}', '""', home, 1
from clock, kinds, lateral (
    select n from generate_series($1::bigint, $2) as n where crowd
    union all
    select n from generate_series(1, $3::bigint) as n where not crowd and $1 = 1
) as u (n)
"""

COUNTERS = """
select c.relname as name, c.relkind = 'r' as is_table,
    pg_stat_get_xact_numscans(c.oid) as scans, pg_stat_get_xact_tuples_returned(c.oid) as read
from pg_class as c
left join pg_index as i on i.indexrelid = c.oid
where coalesce(i.indrelid, c.oid) in (
    'waitline.job'::regclass, 'waitline.tenant'::regclass, 'waitline.line'::regclass
)
"""


class Batch(NamedTuple):
    """The jobs that operations are about."""

    now: int
    running: list[int]
    long: Sequence[int] = ()
    """Running as well, of a tenant with a long line."""


Operation = Callable[[asyncpg.Connection, Batch], Awaitable[object]]


def asked(tenant: str, key: str | None = None, session: str | None = None) -> list[Request]:
    keys = [None if key is None else f"{key}{n}" for n in range(1, BATCH + 1)]
    return [Request(tenant, '"x"', QUOTA, PATIENT, Cost(), key=own, session=session) for own in keys]


async def claim(connection: asyncpg.Connection, batch: Batch) -> object:
    claimed = await claiming.claim(connection, "w", BATCH, batch.now, SECOND)
    return claimed is not None and claimed.claims


async def claim_plain(connection: asyncpg.Connection, batch: Batch) -> object:
    done, claimed = await plain.claim(connection, "w", BATCH, batch.now - HOUR // 2, SECOND)
    return done and claimed is not None and len(claimed.claims) == BATCH


async def claim_callers(connection: asyncpg.Connection, batch: Batch) -> object:
    return await claiming.claim_callers(connection, "here", ["acme", "blocked"], batch.now, SECOND)


async def settle(connection: asyncpg.Connection, batch: Batch) -> object:
    return all(
        await settling.settle(connection, [Ended(job, "acme", 1, DONE, "null") for job in batch.running])
    )


async def settle_above(connection: asyncpg.Connection, batch: Batch) -> object:
    """More than was charged: those in a long line wait for longer, and all of them start in time."""
    endings = [Ended(job, "long", 1, DONE, "null", usage=Usage(2)) for job in batch.long]
    return all(await settling.settle(connection, endings))


async def repeat(connection: asyncpg.Connection, batch: Batch) -> object:
    """At the front of a long line."""
    return all(await settling.settle(connection, [Again(job, "long", 1, 0) for job in batch.long]))


async def settle_plain(connection: asyncpg.Connection, batch: Batch) -> object:
    endings = [Ended(job, "acme", 1, DONE, "null", plain=True) for job in batch.running]
    held = await plain.settle(connection, endings)
    return held is not None and all(held)


async def beat(connection: asyncpg.Connection, batch: Batch) -> object:
    return await connection.fetch(statement("beat"), batch.running, [1] * len(batch.running), SECOND)


async def next_(connection: asyncpg.Connection, batch: Batch) -> object:
    return await connection.fetch(statement("next"))


async def home_due(connection: asyncpg.Connection, batch: Batch) -> object:
    return await connection.fetch(statement("home_due"), ["acme", "blocked"])


async def submit_keyed(connection: asyncpg.Connection, batch: Batch) -> object:
    again, fresh = asked("blocked", key="blocked"), asked("acme", key="fresh")
    return await submitting.submit(connection, [*again, *fresh])


async def submit_sessions(connection: asyncpg.Connection, batch: Batch) -> object:
    return await submitting.submit(connection, asked("acme", session="chat"))


async def submit_plain(connection: asyncpg.Connection, batch: Batch) -> object:
    return await plain.submit(connection, asked("blocked"), {})


async def rescue(connection: asyncpg.Connection, batch: Batch) -> object:
    return await settling.rescue(connection, batch.now, 5, BATCH)


async def prune(connection: asyncpg.Connection, batch: Batch) -> object:
    return await connection.fetch(statement("prune") + " returning id", batch.now - HOUR // 2, BATCH)


OPERATIONS: dict[str, tuple[Operation, set[str]]] = {
    "claim": (claim, {"tenant_due", "job_line", "job_returns", "job_home"}),
    "claim of plain jobs": (
        claim_plain,
        {"tenant_due", "tenant_pkey", "job_line", "job_returns", "job_home", "job_call"},
    ),
    "claim_callers": (claim_callers, {"job_line", "job_returns", "job_home"}),
    "settle": (settle, {"job_session"}),
    "settle of more than was charged": (settle_above, {"job_pkey", "tenant_pkey"}),
    "settle of tries that are repeated": (repeat, {"job_pkey", "tenant_pkey"}),
    "settle of plain tries": (settle_plain, {"job_pkey", "tenant_pkey"}),
    "beat": (beat, {"job_pkey"}),
    "next": (next_, {"tenant_due", "job_lease", "job_deadline", "job_home_lease"}),
    "home_due": (home_due, {"job_line", "job_home_running", "job_deadline", "job_home_lease"}),
    "submit with keys": (submit_keyed, {"job_key"}),
    "submit of sessions": (submit_sessions, {"job_session"}),
    "submit of plain jobs": (submit_plain, {"tenant_pkey"}),
    "rescue": (rescue, {"job_lease", "job_deadline", "job_home_lease"}),
    "prune": (prune, {"job_finished"}),
}
"""What runs all the time, and the indexes that it stands on."""

TEETH = [
    (name, index)
    for name, (_, indexes) in OPERATIONS.items()
    for index in sorted(indexes)
    if not index.endswith("_pkey")
]


class Walked(AssertionError):
    """An operation read more than it may."""


async def fill(dsn: str, low: int, high: int) -> Batch:
    """Add the crowd's rows from `low` to `high`; with the first of them, those of the batch."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(TENANTS, low, high, rows.write_quota(QUOTA), HOUR)
        await connection.execute(JOBS, low, high, BATCH, HOUR)
        running = await connection.fetch("select tenant, id from waitline.job where state = 1")
        ids = {name: [row["id"] for row in running if row["tenant"] == name] for name in ("acme", "long")}
        return Batch(await connection.fetchval("select waitline.now_ns()"), ids["acme"], ids["long"])
    finally:
        await connection.close()


@asynccontextmanager
async def undone(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """A transaction that leaves nothing behind, but the plans that were made in it."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


async def read(
    connection: asyncpg.Connection, operation: Operation, batch: Batch, most: int = MOST
) -> set[str]:
    """Run an operation and return the indexes that it used. Raises `Walked` for one that read too much."""
    before = {row["name"]: row for row in await connection.fetch(COUNTERS)}
    assert await operation(connection, batch), "it found nothing to do"
    used = {}
    for row in await connection.fetch(COUNTERS):
        scans, count = (row[key] - before[row["name"]][key] for key in ("scans", "read"))
        if scans and row["is_table"]:
            raise Walked(f"{row['name']} was scanned {scans} times, over {count} rows")
        if scans:
            used[row["name"]] = count
    if sum(used.values()) > most:
        raise Walked(f"too many entries of indexes were read: {used}")
    return set(used)


@asynccontextmanager
async def filled(server: Server, *, planned: str) -> AsyncIterator[tuple[asyncpg.Connection, Batch]]:
    """A store's connection to a full database. Its plans were made when it was, or while that was small:
    also by what the server had counted by then.
    """
    async with server.database(migrated=True) as dsn:
        batch = await fill(dsn, 1, 1)
        connection = await asyncpg.connect(dsn, server_settings=PINNED, statement_cache_size=200)
        if planned == "counted":  # as the server does by itself, whenever it comes to it
            await connection.execute("analyze waitline.job, waitline.tenant")
        if planned != "full":
            for operation, _ in OPERATIONS.values():
                async with undone(connection):
                    await operation(connection, batch)
        again = await fill(dsn, 2, CROWD)
        if planned == "full":
            await connection.execute("analyze waitline.job, waitline.tenant")
        try:
            yield connection, again
        finally:
            await connection.close()


@pytest.mark.parametrize("planned", ["small", "counted", "full"])
async def test_what_is_read_is_bounded_by_the_batch(server: Server, planned: str) -> None:
    async with filled(server, planned=planned) as (connection, batch):
        assert await connection.fetchval("select count(*) from waitline.job") > 10 * CROWD
        for name, (operation, indexes) in OPERATIONS.items():
            async with undone(connection):
                assert indexes <= await read(connection, operation, batch), name


async def test_a_line_is_walked_over_where_somebody_may_wait_for_too_long(server: Server) -> None:
    async with filled(server, planned="full") as (connection, batch):
        for operation in (settle_above, repeat):
            async with undone(connection):
                await connection.execute("update waitline.tenant set tightest = 0 where name = 'long'")
                with pytest.raises(Walked):
                    await read(connection, operation, batch)


async def test_without_its_index_the_check_fails(server: Server) -> None:
    async with filled(server, planned="full") as (connection, batch):
        for name, index in TEETH:
            async with undone(connection):
                await connection.execute(f"drop index waitline.{index}")
                with pytest.raises(Walked):
                    await read(connection, OPERATIONS[name][0], batch)
