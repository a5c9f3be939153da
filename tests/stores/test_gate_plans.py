"""What an operation at a shared gate reads does not grow with those who stand there, or wait for their turn.

As in `test_plans`, with whose means it is measured. The rows of gates are few: those may be walked over.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from scheduler import Policy, Quota, Upstream
from scheduler.core.gate import COUNTED
from scheduler.core.shared import SharedGate
from scheduler.stores.postgres import gating, rows, settling, submitting
from scheduler.stores.postgres.connections import PINNED
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import DONE, Again, Ended
from tests.stores.servers import Server
from tests.stores.test_plans import (
    BATCH,
    CROWD,
    HOUR,
    QUOTA,
    SECOND,
    Batch,
    Operation,
    Walked,
    asked,
    read,
    undone,
)

pytestmark = pytest.mark.timeout(90)

MOST = 400
"""Entries of indexes that an operation may read. A claim takes the first jobs of twice as many lines."""

GATES = {"m": Quota(concurrency=100), "n": Quota(concurrency=1)}

TENANTS = """
insert into waitline.tenant (name, quota, zeros, work, as_of, waiting, running)
select u.name, $3, '{0}', '{0}', waitline.now_ns(), u.waiting, case when u.name = 'acme' then $4 else 0 end
from (
    values ('acme', 0), ('long', 100000)
    union all
    select kind || n, 1
    from unnest(array['first-', 'comes-']) as kind, generate_series(1, $4::bigint) as n
    union all
    select kind || n, waiting
    from (values ('stands-', 1), ('waits-', 1), ('idle-', 0), ('other-', 1)) as kinds (kind, waiting),
        generate_series($1::bigint, $2) as n
) as u (name, waiting)
on conflict do nothing
"""

JOBS = """
with kinds (tenant, gate, state, crowd, in_line, returns, session) as (
    values
        -- what an operation is about
        ('first-', 'm', 0, false, true, null::bigint, null::text),
        ('comes-', 'm', 0, false, true, null, null),
        ('acme', 'm', 1, false, false, null, null),
        -- what must not matter
        ('stands-', 'm', 0, true, true, null, null),
        ('stands-', 'm', 2, true, false, null, null),
        ('waits-', 'm', 0, true, true, null, null),
        ('idle-', 'm', 2, true, false, null, null),
        ('long', 'm', 0, true, true, null, null),
        ('long', 'm', 0, true, false, $4::bigint, null),
        ('long', 'm', 0, true, false, null, 'crowd'),
        ('other-', 'n', 0, true, true, null, null)
), clock as (
    select waitline.now_ns() as now
)
insert into waitline.job (
    id, tenant, gate, state, place, arrival, promised, returns, lease, worker, finished, session, cost,
    prompt, slot, tries
)
select
    nextval('waitline.job_number'), case when tenant like '%-' then tenant || n else tenant end, gate,
    state, case when in_line then now + n end, now + n, now + n, now + returns,
    case when state = 1 then now + $4 end, case when state = 1 then 'w' end,
    case when state > 1 then now end, session, '{1,0,0}', '""', case when state = 1 then now end, 1
from clock, kinds, lateral (
    select n from generate_series($1::bigint, $2) as n where crowd
    union all
    select n from generate_series(1, $3::bigint) as n where not crowd and $1 = 1
) as u (n)
"""

LINES = """
insert into waitline.line (gate, tenant, waiting, due, start, front)
select
    coalesce(j.gate, 'm'), t.name, t.waiting,
    case
        when t.name like 'comes-%' then waitline.now_ns()
        when t.name like 'waits-%' then waitline.now_ns() + $1
    end,
    case when t.name like 'first-%' then 1 when t.name ~ '^(long|stands|other)' then j.id end,
    (j.turn * (2::numeric ^ 40) + j.id) * (2::numeric ^ 12)
from waitline.tenant as t
left join lateral (
    select * from waitline.job where tenant = t.name and turn is not null order by turn, id limit 1
) as j on true
where t.name <> 'acme'
on conflict do nothing
"""

STATE = """
update waitline.gate as g
set running = (select count(*) from waitline.job where gate = g.name and state = 1), due = waitline.now_ns(),
    state = $2
where name = $1
"""


async def claim(connection: asyncpg.Connection, batch: Batch) -> object:
    claimed = await gating.claim(connection, "w", BATCH, batch.now, SECOND)
    return claimed is not None and len(claimed.claims) == BATCH


async def claim_nothing(connection: asyncpg.Connection, batch: Batch) -> object:
    """Nothing is due."""
    return await gating.claim(connection, "w", BATCH, batch.now - HOUR, SECOND) is None


async def claim_in_vain(connection: asyncpg.Connection, batch: Batch) -> object:
    """A worker without a free slot looks for callers."""
    return await gating.claim(connection, "w", 0, batch.now, SECOND)


async def heads(connection: asyncpg.Connection, batch: Batch) -> object:
    return await connection.fetch(statement("heads"), ["m", "n"], batch.now, COUNTED + 1)


async def next_(connection: asyncpg.Connection, batch: Batch) -> object:
    return await connection.fetch(statement("next"))


async def home_due(connection: asyncpg.Connection, batch: Batch) -> object:
    return await connection.fetch(statement("home_due"), ["acme", "long"])


async def submit(connection: asyncpg.Connection, batch: Batch) -> object:
    """Of a tenant that waits already, and of new ones."""
    requests = [request._replace(gate="m") for tenant in ("long", "acme", "new") for request in asked(tenant)]
    return await submitting.submit(connection, requests)


async def submit_strict(connection: asyncpg.Connection, batch: Batch) -> object:
    requests = [request._replace(gate="m", policy=Policy.strict()) for request in asked("waits-1")]
    return await submitting.submit(connection, requests)


async def settle(connection: asyncpg.Connection, batch: Batch) -> object:
    endings = [Ended(job, "acme", 1, DONE, "null") for job in batch.running]
    return all(await settling.settle(connection, endings))


async def repeat(connection: asyncpg.Connection, batch: Batch) -> object:
    endings = [Again(job, "acme", 1, number % 2 * SECOND) for number, job in enumerate(batch.running)]
    return all(await settling.settle(connection, endings))


async def withdraw(connection: asyncpg.Connection, batch: Batch) -> object:
    found = await connection.fetch(
        "select id, tenant from waitline.job where tenant = 'waits-2' and turn is not null"
    )
    return await settling.withdraw(connection, [(row["id"], row["tenant"]) for row in found], 4, "cancelled")


OPERATIONS: dict[str, tuple[Operation, set[str]]] = {
    "claim": (claim, {"line_due", "line_standing", "job_turn", "job_returns", "line_pkey"}),
    "claim when nothing is due": (claim_nothing, {"line_due"}),
    "claim without slots": (claim_in_vain, {"line_due", "line_standing", "line_pkey"}),
    "heads": (heads, {"line_standing", "line_due"}),
    "next": (next_, {"line_due", "tenant_due"}),
    "home_due": (home_due, {"line_pkey"}),
    "submit": (submit, {"line_standing", "line_pkey", "tenant_pkey"}),
    "submit that is refused": (submit_strict, {"line_standing", "line_pkey"}),
    "settle": (settle, {"job_pkey", "tenant_pkey", "line_pkey"}),
    "settle of tries that are repeated": (repeat, {"job_pkey", "tenant_pkey", "line_pkey"}),
    "withdraw": (withdraw, {"job_pkey", "tenant_pkey", "line_pkey"}),
}
"""What runs all the time, and the indexes that it stands on."""

TEETH = [
    (name, index)
    for name, (_, indexes) in OPERATIONS.items()
    for index in sorted(indexes)
    if not index.endswith("_pkey")
]


async def fill(dsn: str, low: int, high: int) -> Batch:
    """Add the crowd's rows from `low` to `high`; with the first of them, those of the batch and the gates."""
    connection = await asyncpg.connect(dsn)
    try:
        now = await connection.fetchval("select waitline.now_ns()")
        if low == 1:
            for name, quota in GATES.items():
                state = rows.write_gate(SharedGate(name, Upstream(quota), now))[-1]
                await connection.execute(
                    statement("create_gate"), name, rows.write_upstream(Upstream(quota)), state
                )
        await connection.execute(TENANTS, low, high, rows.write_quota(QUOTA), BATCH)
        await connection.execute(JOBS, low, high, BATCH, HOUR)
        await connection.execute(LINES, HOUR)
        for name, quota in GATES.items():
            gate = SharedGate(name, Upstream(quota), now)
            gate.stood = gate.lines = await connection.fetchval(
                "select count(*) from waitline.line where gate = $1 and start is not null", name
            )
            await connection.execute(STATE, name, json.dumps(gate.keep()))
        running = await connection.fetch("select id from waitline.job where tenant = 'acme' and state = 1")
        return Batch(now, [row["id"] for row in running])
    finally:
        await connection.close()


@asynccontextmanager
async def filled(server: Server, *, planned: str) -> AsyncIterator[tuple[asyncpg.Connection, Batch]]:
    """A store's connection to a full database. Its plans were made when it was, or while that was small:
    also by what the server had counted by then.
    """
    async with server.database(migrated=True) as dsn:
        batch = await fill(dsn, 1, 2)
        connection = await asyncpg.connect(dsn, server_settings=PINNED, statement_cache_size=200)
        if planned == "counted":
            await connection.execute("analyze waitline.job, waitline.tenant, waitline.line, waitline.gate")
        if planned != "full":
            for operation, _ in OPERATIONS.values():
                async with undone(connection):
                    await operation(connection, batch)
        again = await fill(dsn, 3, CROWD)
        if planned == "full":
            await connection.execute("analyze waitline.job, waitline.tenant, waitline.line, waitline.gate")
        try:
            yield connection, again
        finally:
            await connection.close()


@pytest.mark.parametrize("planned", ["small", "counted", "full"])
async def test_what_is_read_at_a_gate_is_bounded_by_the_batch(server: Server, planned: str) -> None:
    async with filled(server, planned=planned) as (connection, batch):
        assert await connection.fetchval("select count(*) from waitline.line") > 4 * CROWD
        for name, (operation, indexes) in OPERATIONS.items():
            async with undone(connection):
                assert indexes <= await read(connection, operation, batch, MOST), name


async def test_without_its_index_the_check_fails(server: Server) -> None:
    async with filled(server, planned="full") as (connection, batch):
        for name, index in TEETH:
            async with undone(connection):
                await connection.execute(f"drop index waitline.{index}")
                with pytest.raises(Walked):
                    await read(connection, OPERATIONS[name][0], batch, MOST)
