"""The least that bare SQL can do: two tables, a statement each to enqueue, to admit and to complete a batch.

A yardstick, not a queue to use: no leases, no retries, no refusals, tenants made beforehand.
"""

# ruff: noqa: D102 - what a subject's methods do is said once, in `Subject`

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import asyncpg

from benchmarks.durable.subjects.base import TEXT, Ran, Ready, Subject
from benchmarks.measure import NS

# Queue tables are planned while they are empty.
PINNED = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

# `tat`: when the bucket is full again. Two counters that only grow lose no wake-up, as a flag would.
TABLES = """
create function now_ns() returns bigint language sql volatile
    as $$ select (extract(epoch from clock_timestamp()) * 1000000000)::bigint $$;
create table tenant (
    name text primary key, step bigint not null, slack bigint not null, tat bigint not null default 0,
    enqueued bigint not null default 0, claimed bigint not null default 0, due bigint
) with (fillfactor = 50);
create index on tenant (due) where due is not null;
create table job (
    id bigint generated always as identity primary key,
    tenant text not null, place bigint, arrival bigint not null,
    payload text not null, state smallint not null default 0, result text
) with (fillfactor = 80);
create index on job (tenant, place) where place is not null;
"""

ENQUEUE = """
with clock as materialized (select now_ns() as now),
asked as (
    select u.tenant, u.payload, u.n
    from unnest($1::text[], $2::text[]) with ordinality as u (tenant, payload, n)
),
per as (select tenant, count(*) as jobs from asked group by tenant),
counted as (
    update tenant as t
    set enqueued = t.enqueued + per.jobs,
        tat = case when t.enqueued = t.claimed then greatest(t.tat, clock.now) else t.tat end,
        due = coalesce(t.due, greatest(t.tat, clock.now) - t.slack)
    from per, clock where t.name = per.tenant
    returning t.name
),
told as (select pg_notify('due', '') where exists (select from counted))
insert into job (tenant, place, arrival, payload)
select asked.tenant, clock.now + asked.n, clock.now, asked.payload from asked, clock, told order by asked.n
returning id
"""

# What is counted are the rows that were really taken: another worker may have had one since this snapshot.
ADMIT = """
with clock as materialized (select now_ns() as now),
locked as materialized (
    select name, step, least((select now from clock) - (tat - slack), 1000000000000000) / step + 1 as permits
    from tenant where due <= (select now from clock) order by due limit $1 for update skip locked
),
heads as materialized (
    select head.id from locked cross join lateral (
        select id from job where tenant = locked.name and place is not null
        order by place limit greatest(0, coalesce(least(locked.permits, $2), 0))
    ) as head
),
taken as (
    update job set place = null, state = 1
    where id = any(array(select id from heads)) and place is not null returning id, tenant, payload
),
per as (
    select locked.name, locked.step, count(taken.id) as jobs
    from locked left join taken on taken.tenant = locked.name group by 1, 2
),
saved as (
    update tenant as t
    set claimed = t.claimed + per.jobs, tat = t.tat + per.jobs * per.step,
        due = case when t.enqueued > t.claimed + per.jobs then t.tat + per.jobs * per.step - t.slack end
    from per where t.name = per.name
)
select id, payload from taken
"""

COMPLETE = """
with ended as (
    update job as j set state = 2, result = u.result
    from unnest($1::bigint[], $2::text[]) as u (id, result) where j.id = u.id returning j.id
)
select pg_notify('done', string_agg(id::text, ' ')) from (
    select id, (row_number() over () - 1) / 300 as part from ended
) as numbered group by part
"""

NEXT = "select greatest(0, min(due) - now_ns()) from tenant where due is not null"
RESULTS = "select id, result from job where id = any($1::bigint[])"

TENANTS, JOBS = 100, 100
"""In one statement, and of each of them."""


class Coalesced:
    """Calls that come while a batch is under way go together in the next one."""

    def __init__(self, work: Callable[[list[Any]], Awaitable[Sequence[Any]]]) -> None:
        self._work = work
        self._queue: list[tuple[Any, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    def do(self, item: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return future

    async def _run(self) -> None:
        while self._queue:
            batch, self._queue = self._queue[:1000], self._queue[1000:]
            answers = await self._work([item for item, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)


class Prototype(Subject):
    """Submits are coalesced onto one connection; a worker admits on one and completes on another."""

    answers = True
    left = "select count(*) from job where state < 2"

    async def connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(self.dsn, server_settings=PINNED)

    async def install(self) -> None:
        connection = await self.connect()
        await connection.execute(TABLES)
        names = [self.load.tenant(number) for number in range(self.load.tenants)]
        steps = [NS // self.load.rate(name) for name in names]
        slacks = [step * (self.load.burst - 1) for step in steps]
        rows = "select * from unnest($1::text[], $2::bigint[], $3::bigint[])"
        await connection.execute(f"insert into tenant (name, step, slack) {rows}", names, steps, slacks)
        await connection.close()

    async def open(self) -> None:
        self.sending, self.hearing, self.reading = [await self.connect() for _ in range(3)]
        self.submits, self.results = Coalesced(self._submit), Coalesced(self._results)
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.over: set[int] = set()
        await self.hearing.add_listener("done", self._heard)

    async def close(self) -> None:
        for connection in (self.sending, self.hearing, self.reading):
            await connection.close()

    async def _submit(self, numbers: list[int]) -> Sequence[int]:
        tenants = [self.load.tenant(number) for number in numbers]
        rows = await self.sending.fetch(ENQUEUE, tenants, [f"{number} {TEXT}" for number in numbers])
        return [row["id"] for row in rows]

    async def _results(self, ids: list[int]) -> Sequence[str]:
        found = {row["id"]: row["result"] for row in await self.reading.fetch(RESULTS, ids)}
        return [found[job] for job in ids]

    def _heard(self, *heard: Any) -> None:
        for job in map(int, str(heard[-1]).split()):
            waiting = self.waiting.pop(job, None)
            if waiting is None:
                self.over.add(job)  # told before its submitter has heard the number
            else:
                waiting.set_result(None)

    async def enqueue(self, number: int) -> None:
        await self.submits.do(number)

    async def batch(self, numbers: Sequence[int]) -> None:
        await self._submit(list(numbers))

    async def life(self, number: int) -> Any:
        job = await self.submits.do(number)
        if job in self.over:
            self.over.remove(job)
        else:
            self.waiting[job] = asyncio.get_running_loop().create_future()
            await self.waiting[job]
        return int(await self.results.do(job))

    def work(self, ready: Ready, ran: Ran) -> None:
        asyncio.run(self._work(ready, ran))

    async def _work(self, ready: Ready, ran: Ran) -> None:
        admitting, completing, hearing = [await self.connect() for _ in range(3)]
        due = asyncio.Event()
        await hearing.add_listener("due", lambda *_: due.set())
        saving: asyncio.Task[Any] | None = None
        ready()
        while True:
            due.clear()
            rows = await admitting.fetch(ADMIT, TENANTS, JOBS)
            numbers = [int(row["payload"].partition(" ")[0]) for row in rows]
            for number in numbers:
                ran(number)
            if saving is not None:
                await saving
            if rows:
                ended = completing.fetch(COMPLETE, [row["id"] for row in rows], list(map(str, numbers)))
                saving = asyncio.create_task(ended)
                continue
            saving = None
            pause = await admitting.fetchval(NEXT)
            with suppress(TimeoutError):
                await asyncio.wait_for(due.wait(), 30 if pause is None else pause / NS)
