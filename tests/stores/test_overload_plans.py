"""What a claim reads of a line that is late does not grow with the line, by whatever order that goes.

As in `test_plans`, with whose means it is measured.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from scheduler import Quota, Upstream
from scheduler.core.shared import SharedGate
from scheduler.stores.postgres import claiming, gating, plain, rows
from scheduler.stores.postgres.connections import PINNED
from scheduler.stores.postgres.statements import statement
from tests.stores.servers import Server
from tests.stores.test_plans import BATCH, HOUR, QUOTA, SECOND, Walked, undone

pytestmark = pytest.mark.timeout(90)

LINE = 10_000
"""Jobs in the line, half of them with a deadline: whoever came later must be done sooner."""

MOST = 300
"""Entries of indexes that a claim may read."""

TENANTS = """
insert into waitline.tenant (name, quota, zeros, work, as_of, waiting, due)
select u.name, $1, '{0}', '{0}', waitline.now_ns() - 1000000, 1000000, u.due
from (values ('late', waitline.now_ns()), ('gated', null), ('other', null)) as u (name, due)
on conflict do nothing
"""

JOBS = """
with kinds (tenant, gate, state, in_line) as (
    values
        ('late', null, 0, true), ('gated', 'm', 0, true),
        -- what must not matter
        ('late', null, 0, false), ('late', null, 2, false), ('other', null, 0, true),
        ('gated', 'm', 0, false), ('gated', 'm', 2, false), ('other', 'm', 0, true)
)
insert into waitline.job (
    id, tenant, gate, state, place, arrival, promised, deadline, session, finished, cost, prompt, tries
)
select
    nextval('waitline.job_number'), tenant, gate, state,
    case when in_line then $3::bigint - $4::bigint + n end, $3 - $4 + n, $3,
    case when n % 2 = 0 then $3 + $4 - n - case when in_line and tenant <> 'other' then 0 else 999999 end end,
    case when state = 0 and not in_line then 'crowd' end, case when state > 1 then $3 end, '{1,0,0}', '""', 0
from kinds, generate_series($1::bigint, $2) as n
"""

LINES = """
insert into waitline.line (gate, tenant, waiting, due) values ('m', 'gated', 1000000, waitline.now_ns())
on conflict do nothing
"""

COUNTERS = """
select c.relname as name, c.relkind = 'r' as is_table,
    pg_stat_get_xact_numscans(c.oid) as scans, pg_stat_get_xact_tuples_returned(c.oid) as read
from pg_class as c
left join pg_index as i on i.indexrelid = c.oid
where coalesce(i.indrelid, c.oid) = 'waitline.job'::regclass
"""

Operation = Callable[[asyncpg.Connection, int], Awaitable[list[int]]]


async def claim(connection: asyncpg.Connection, now: int) -> list[int]:
    claimed = await claiming.claim(connection, "w", BATCH, now, SECOND)
    return [] if claimed is None else [one.id for one in claimed.claims]


async def claim_at_gate(connection: asyncpg.Connection, now: int) -> list[int]:
    claimed = await gating.claim(connection, "w", BATCH, now, SECOND)
    return [] if claimed is None else [one.id for one in claimed.claims]


async def claim_plain(connection: asyncpg.Connection, now: int) -> list[int]:
    """It is left to the general way."""
    done, claimed = await plain.claim(connection, "w", BATCH, now, SECOND)
    assert not done
    assert claimed is None
    return []


OPERATIONS: dict[str, tuple[Operation, str, set[str]]] = {
    "claim": (claim, "late", {"job_line", "job_urgent"}),
    "claim at a gate": (claim_at_gate, "gated", {"job_turn", "job_turn_urgent"}),
    "claim of plain jobs": (claim_plain, "", {"job_line"}),
}
"""By which claims go, whose jobs they grant, and the indexes that they stand on."""


async def fill(dsn: str, low: int, high: int) -> int:
    """Add jobs to the lines; the time at which the last one of them came was an hour ago."""
    connection = await asyncpg.connect(dsn)
    try:
        now: int = await connection.fetchval("select waitline.now_ns()")
        if low == 1:
            gate = SharedGate("m", Upstream(Quota(concurrency=100)), now)
            gate.lines = 1
            given, state = rows.write_upstream(gate.upstream), rows.write_gate(gate)[-1]
            await connection.execute(statement("create_gate"), "m", given, state)
        await connection.execute(TENANTS, rows.write_quota(QUOTA))
        await connection.execute(JOBS, low, high, now, HOUR)
        await connection.execute(LINES)
        return int(await connection.fetchval("select waitline.now_ns()"))
    finally:
        await connection.close()


async def declare(connection: asyncpg.Connection, newest: bool) -> None:
    await connection.execute("delete from waitline.overload")
    await connection.execute("insert into waitline.overload (target, newest) values ($1, $2)", SECOND, newest)


@asynccontextmanager
async def filled(server: Server, *, planned: str) -> AsyncIterator[tuple[asyncpg.Connection, int]]:
    """A store's connection to a full database. Its plans were made when it was, or while that was small:
    also by what the server had counted by then.
    """
    async with server.database(migrated=True) as dsn:
        now = await fill(dsn, 1, 2)
        connection = await asyncpg.connect(dsn, server_settings=PINNED, statement_cache_size=200)
        if planned == "counted":
            await connection.execute("analyze waitline.job, waitline.tenant, waitline.line")
        if planned != "full":
            for newest in (False, True):
                for operation, _, _ in OPERATIONS.values():
                    async with undone(connection):
                        await declare(connection, newest)
                        await operation(connection, now)
        now = await fill(dsn, 3, LINE)
        if planned == "full":
            await connection.execute("analyze waitline.job, waitline.tenant, waitline.line")
        try:
            yield connection, now
        finally:
            await connection.close()


async def read(connection: asyncpg.Connection, operation: Operation, now: int) -> tuple[list[int], set[str]]:
    """Run a claim: what it granted, and the indexes that it used. Raises `Walked` if it read too much."""
    before = {row["name"]: row for row in await connection.fetch(COUNTERS)}
    granted, used = await operation(connection, now), {}
    for row in await connection.fetch(COUNTERS):
        scans, count = (row[key] - before[row["name"]][key] for key in ("scans", "read"))
        if scans and row["is_table"]:
            raise Walked(f"{row['name']} was scanned {scans} times, over {count} rows")
        if scans:
            used[row["name"]] = count
    if sum(used.values()) > MOST:
        raise Walked(f"too many entries of indexes were read: {used}")
    return granted, set(used)


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize("planned", ["small", "counted", "full"])
async def test_a_late_line_is_not_walked(server: Server, planned: str, newest: bool) -> None:
    """Nearly all of those go first who came last."""
    async with filled(server, planned=planned) as (connection, now):
        for name, (operation, tenant, indexes) in OPERATIONS.items():
            expected = await connection.fetch(
                "select id from waitline.job where tenant = $1 and coalesce(place, turn) is not null"
                " and ($2 or deadline is not null) order by case when $2 then -id else deadline end limit $3",
                tenant,
                newest,
                BATCH if tenant else 0,
            )
            async with undone(connection):
                await declare(connection, newest)
                granted, used = await read(connection, operation, now)
                assert granted == [row["id"] for row in expected], name
                needed = {index for index in indexes if not (newest and index.endswith("urgent"))}
                assert needed <= used, name


@pytest.mark.parametrize("name", ["claim", "claim at a gate"])
async def test_without_its_index_the_check_fails(server: Server, name: str) -> None:
    operation, _, indexes = OPERATIONS[name]
    async with filled(server, planned="full") as (connection, now):
        for index in sorted(indexes):
            async with undone(connection):
                await declare(connection, newest=False)
                await connection.execute(f"drop index waitline.{index}")
                with pytest.raises(Walked):
                    await read(connection, operation, now)
