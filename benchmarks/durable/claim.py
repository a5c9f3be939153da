"""P12: what a claim costs when more tenants and jobs are blocked, and when more finished jobs are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import median

import asyncpg

from benchmarks.cases.base import Case, Column
from benchmarks.durable.measuring import within_limit
from benchmarks.durable.server import database
from benchmarks.durable.subjects.waitline import POLICY
from benchmarks.measure import Row, now
from scheduler import Quota, Rate, Scheduler
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.values import DONE, Claim, Ended

LIVE = 100
"""Tenants from which is claimed: one job of each at a time."""

ROUNDS, WARM = 40, 10
SLOTS = 100

SIZES = (100, 10_000, 1_000_000)

FREE = Quota(Rate(1_000_000, burst=1_000_000))
BLOCKED = Quota(Rate(1, per=86_400))
"""One job a day: the first takes the bucket, the second is blocked until tomorrow."""


def quota_of(tenant: str) -> Quota:
    """Those that are claimed from have buckets that never bind."""
    return FREE if tenant.startswith("live") else BLOCKED


async def settle(store: PostgresStore, claims: Sequence[Claim]) -> None:
    """Record that jobs are done; the store does it in one transaction."""
    ends = (Ended(claim.id, claim.tenant, claim.tries, DONE, "null") for claim in claims)
    await asyncio.gather(*map(store.settle, ends))


async def copies(
    connection: asyncpg.Connection, table: str, where: str, change: dict[str, str], to: int
) -> None:
    """Insert copies of rows `s` of a table, for each `n` of 1 to `to`, with some columns changed."""
    found = await connection.fetch(
        "select attname from pg_attribute "
        "where attrelid = $1::text::regclass and attnum > 0 and not attisdropped and attgenerated = ''",
        table,
    )
    names = [row["attname"] for row in found]
    values = ", ".join(change.get(name, f"s.{name}") for name in names)
    await connection.execute(
        f"insert into {table} ({', '.join(names)}) "
        f"select {values} from {table} as s cross join generate_series(1, {to}) as n where {where}"
    )


async def template(scheduler: Scheduler, store: PostgresStore) -> None:
    """A blocked tenant that has one job waiting until tomorrow, and one that is done."""
    for _ in range(2):
        await scheduler.enqueue("blocked", "wait")
    claimed = await store.claim("bench", 2)
    if claimed is None or len(claimed.claims) != 1:
        raise AssertionError("one of the two jobs should have been granted")
    await settle(store, claimed.claims)


async def live(scheduler: Scheduler, tenants: int, each: int) -> None:
    """Jobs that can be claimed."""
    for _ in range(each):
        await asyncio.gather(*(scheduler.enqueue(f"live-{number}", "go") for number in range(tenants)))


NUMBER = "nextval('waitline.job_number')"


async def blocked(connection: asyncpg.Connection, size: int) -> None:
    """So many blocked tenants with a job each."""
    named = "'blocked-' || n"
    await copies(
        connection, "waitline.tenant", "s.name = 'blocked'", {"name": named, "due": "s.due + n"}, size
    )
    change = {"id": NUMBER, "tenant": named}
    await copies(connection, "waitline.job", "s.tenant = 'blocked' and s.state = 0", change, size)


async def deep(connection: asyncpg.Connection, size: int) -> None:
    """So many blocked jobs of one tenant, which is not due before tomorrow."""
    change = {"id": NUMBER, "place": "s.place + n"}
    await copies(connection, "waitline.job", "s.tenant = 'blocked' and s.state = 0", change, size)
    await connection.execute(
        "update waitline.tenant set waiting = waiting + $1::integer where name = 'blocked'", size
    )


async def behind(connection: asyncpg.Connection, size: int) -> None:
    """So many more jobs in the lines from which is claimed, behind those that are claimed."""
    where = "s.id in (select max(id) from waitline.job where tenant like 'live-%' group by tenant)"
    each = max(1, size // LIVE)
    await copies(connection, "waitline.job", where, {"id": NUMBER, "place": "s.place + n"}, each)
    await connection.execute(
        "update waitline.tenant "
        "set work = array(select (w * (waiting + $1::integer)) / waiting from unnest(work) as w),"
        " waiting = waiting + $1::integer where name like 'live-%'",
        each,
    )


async def finished(connection: asyncpg.Connection, size: int) -> None:
    """So many jobs that are done and kept."""
    where = "s.tenant = 'blocked' and s.state = 2"
    await copies(connection, "waitline.job", where, {"id": NUMBER, "finished": "s.finished + n"}, size)


KINDS = {"tenants": blocked, "jobs": deep, "line": behind, "finished": finished}


async def rounds(store: PostgresStore, count: int) -> Row:
    """Medians of the statements of a worker's round: claim a hundred jobs, look for what is next, settle."""
    taken: list[tuple[int, int, int]] = []
    for _ in range(count):
        begin = now()
        claimed = await store.claim("bench", SLOTS)
        claiming = now()
        await store.next()
        looking = now()
        if claimed is None or not claimed.claims:
            raise AssertionError("nothing could be claimed")
        await settle(store, claimed.claims)
        each = len(claimed.claims)
        taken.append(((claiming - begin) // each, looking - claiming, (now() - looking) // each))
    claims, looks, settles = (median(part) / 1000 for part in zip(*taken, strict=True))
    return {"claim_us": claims, "next_us": looks, "settle_us": settles}


async def claimed(kind: str, size: int, quick: bool) -> Row:
    """Load the population by SQL, let the server settle, and claim."""
    count, warm, tenants = (3, 1, 10) if quick else (ROUNDS, WARM, LIVE)
    async with (
        database() as dsn,
        PostgresStore(dsn) as store,
        Scheduler(store=store, quotas=quota_of, policy=POLICY) as scheduler,
    ):
        await template(scheduler, store)
        await live(scheduler, tenants, (count + warm) * SLOTS // tenants + 1)
        connection = await asyncpg.connect(dsn)
        try:
            await KINDS[kind](connection, min(size, 1000) if quick else size)
            # What the server does by itself within a minute, so that it does not come in between.
            await connection.execute("vacuum (analyze) waitline.job, waitline.tenant")
            await connection.execute("checkpoint")
        finally:
            await connection.close()
        await rounds(store, warm)
        return await rounds(store, count)


def grows(kind: str, title: str, note: str = "") -> Case:
    """A case whose subjects are sizes."""
    return Case(
        name=f"durable-claim-{kind}",
        target="P12",
        title=title,
        measure=lambda name, quick: within_limit(claimed(kind, SIZES[SUBJECTS.index(name)], quick)),
        judged=SUBJECTS,
        columns=(
            Column("claim_us", "claim, µs per job", ",.1f"),
            Column("next_us", "look for what is next, µs"),
            Column("settle_us", "settle, µs per job", ",.1f"),
        ),
        most=1,
        note=note,
    )


SUBJECTS = tuple(f"waitline, {size:,}" for size in SIZES)

CASES = (
    grows(
        "tenants",
        "cost of a claim beside so many blocked tenants with a job each",
        "A hundred jobs of a hundred tenants in each claim, medians of 40 rounds; what lies beside them was "
        "loaded by SQL, vacuumed and analysed.",
    ),
    grows("jobs", "cost of a claim beside so many blocked jobs of one tenant"),
    grows("line", "cost of a claim from lines that hold so many jobs"),
    grows("finished", "cost of a claim with so many finished jobs kept"),
)
