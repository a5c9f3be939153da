"""The other side: a script played on the PostgreSQL store, with workers that claim what is due."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from scheduler.core.quota import NOTHING, NS
from scheduler.errors import ErrRateLimited, QuotaExceeded
from scheduler.stores.postgres import PostgresStore, plain
from scheduler.stores.postgres.claiming import Claimed
from scheduler.stores.values import CANCELLED, DONE, Again, Claim, Ended, Heard, Request
from tests.conformance.record import Answer, Quotas, Record
from tests.core.play import START, Op

NEVER = 1 << 62

WRONG = """
select t.name, t.waiting, t.running, t.work::text
from waitline.tenant as t
where t.waiting <> (select count(*) from waitline.job where tenant = t.name and state = 0)
    or t.running <> (
        select count(*)
        from waitline.job
        where tenant = t.name and state = 1 and holder is null and not deferred
    )
    or (
        0 <> any (t.work)
        and not exists (select from waitline.job where tenant = t.name and (place >= 0 or turn >= 0))
    )
    or 0 > any (t.work)
"""
"""Tenants that count something else than there is."""

WRONG_AT_GATES = """
select g.name, g.running, g.state, jobs.running, jobs.lines, jobs.tenants
from waitline.gate as g
cross join lateral (
    select
        (
            select count(*)
            from waitline.job
            where gate = g.name and state = 1 and holder is null and not deferred
        ) as running,
        (select count(distinct tenant) from waitline.job where gate = g.name and state = 0) as tenants,
        (select sum(waiting) from waitline.line where gate = g.name) as lines,
        (select count(*) from waitline.line where gate = g.name and start is not null) as stood,
        (select count(*) from waitline.job where gate = g.name and state = 0) as waiting,
        (
            select coalesce(sum(cost[1]), 0)
            from waitline.job
            where gate = g.name and turn is not null
        ) as requests
) as jobs
where g.running <> jobs.running or (g.state::json ->> 'lines')::integer <> jobs.tenants
    or coalesce(jobs.lines, 0) <> jobs.waiting or (g.state::json ->> 'stood')::integer <> jobs.stood
    or (jobs.requests = 0 and (g.state::json ->> 'backlog') like '%[1-9]%')
"""
"""Gates that count something else than there is."""

SERVED = "select id, gate, rung, model, max_tokens from waitline.job where gate is not null"

FORGET_HOLD = """
update waitline.gate
set state = jsonb_set(state::jsonb, '{hold}', '50000000')::text
returning 1
"""
"""The engine in memory is held to expect the least, too."""

VIRTUAL = f"""
create table if not exists waitline.test_clock (now bigint not null);
create or replace function waitline.now_ns() returns bigint language sql volatile
    as 'select now from waitline.test_clock';
truncate waitline.job, waitline.tenant, waitline.line, waitline.gate, waitline.overload, waitline.test_clock;
insert into waitline.test_clock values ({START});
"""


SHORT = """
do $$
declare
    text text;
begin
    text := pg_get_functiondef('waitline.due_lines'::regproc);
    execute replace(text, 'each + 30', 'each + 1');
    text := pg_get_functiondef('waitline.gate_lines'::regproc);
    execute replace(replace(text, 'each + 30', 'each + 1'), 'greatest(8,', 'greatest(1,');
end
$$;
"""
"""Claims load no more of a line than they must, so that a short one goes on behind that."""


class ByTurns(plain.Guess):
    """A claim in one round trip if it can be, then one by the general rules: scripts are played over both."""

    one = False

    def may_be_plain(self) -> bool:
        self.one = not self.one
        return self.one


class VirtualStore(PostgresStore):
    """The store, where time passes only when a test says so."""

    now = START

    def __init__(self, dsn: str, *, connections: int, lease: float, migrate: bool = True) -> None:
        super().__init__(dsn, connections=connections, lease=lease, migrate=migrate)
        self._claims = ByTurns()

    def about(self) -> int:
        return self.now

    async def move(self, time: int) -> None:
        """Let it be `time`."""
        if time != self.now:
            self.now = time
            async with self._connections.connection() as connection:
                await connection.execute("update waitline.test_clock set now = $1", time)

    async def due(self) -> int:
        """When something is due at the earliest."""
        return min((time for time in await self.next() if time is not None), default=NEVER)

    async def rows(self, query: str) -> list[tuple[object, ...]]:
        async with self._connections.connection() as connection:
            return [tuple(row) for row in await connection.fetch(query)]


@asynccontextmanager
async def opened(
    dsn: str, connections: int = 2, lease: float = 1e7, short: bool = False
) -> AsyncIterator[VirtualStore]:
    """The store at the start of a script, with nothing in it. `short`: see `SHORT`."""
    async with VirtualStore(dsn, connections=connections, lease=lease) as store:
        async with store._connections.connection() as connection:
            await connection.execute(VIRTUAL + (SHORT if short else ""))
        yield store


@dataclass
class Stored:
    """The store, and workers that claim whenever something is due.

    `remote`: has somebody else claim, given a worker's name, the time and the slots.
    `late`: nanoseconds by which they notice it late. `claimers`: how many claim at once. `slots`: jobs that
    each takes at a time.
    """

    store: VirtualStore
    quotas: Quotas
    late: int = 0
    claimers: int = 1
    slots: int = 100
    remote: Callable[[str, int, int], Awaitable[Claimed | None]] | None = None
    ids: list[int | None] = field(default_factory=list)
    running: dict[int, Claim] = field(default_factory=dict)
    kept: Record = field(default_factory=Record)

    async def run(self, ops: Sequence[Op]) -> Stored:
        """Play a script."""
        for op in ops:
            await self.until(self.store.now + op.gap)
            await getattr(self, op.kind)(op)
            await self.pump()
        return self

    async def until(self, time: int) -> None:
        """Let time pass, and claim whatever becomes due meanwhile."""
        while (due := await self.store.due()) <= time:
            await self.store.move(min(time, max(self.store.now, due + self.late)))
            await self.pump()
            if (still := await self.store.due()) <= self.store.now:
                raise AssertionError(f"due at {still - START}, and nobody can claim it: {await self.left()}")
        await self.store.move(time)

    async def pump(self) -> None:
        """Claim all that can be claimed, and end what waited past its deadline."""
        for _ in range(1000):
            claimed = await self.claims()
            busy = any(found is not None and (found.claims or found.more) for found in claimed)
            if not busy and not await self.store.rescue(5):
                return
        raise AssertionError(f"claims without end: {await self.left()}")

    async def claims(self) -> Sequence[Claimed | None]:
        """Everybody claims once."""
        names = [f"worker {number}" for number in range(self.claimers)]
        if self.remote is None:
            found = await asyncio.gather(*(self.store.claim(name, self.slots) for name in names))
        else:
            found = await asyncio.gather(*(self.remote(name, self.store.now, self.slots) for name in names))
        granted = [claim for claimed in found if claimed is not None for claim in claimed.claims]
        for claim in sorted(granted, key=lambda claim: claim.slot):  # claims of one tenant exclude each other
            job = self.ids.index(claim.id)
            assert job not in self.running, f"job {job} was granted twice"
            self.running[job] = claim
            self.kept.grants[claim.tenant].append((job, claim.slot - START))
        return found

    async def left(self) -> list[tuple[object, ...]]:
        """What waits, for a failure's text."""
        return await self.store.rows("select id, place, returns, arrival from waitline.job where state = 0")

    # --- operations ---------------------------------------------------------------------------------

    def request(self, op: Op) -> Request:
        """An offer as the store takes it."""
        quota, rare = self.quotas[op.tenant], (op.head_start, op.session, op.timeout)
        return Request(op.tenant, '"…"', quota, op.policy, op.cost, *rare, gate=op.gate or None)

    async def offer(self, op: Op) -> None:
        """Submit a job, and note the answer."""
        if op.gate:
            await self.store.rows(FORGET_HOLD)
        try:
            found = await self.store.submit(self.request(op))
        except ErrRateLimited as error:
            self.note(None, ("refused", str(error.reason), round(error.retry_after * NS)), None)
        except QuotaExceeded as error:
            self.note(None, ("never", error.limit, error.cost, error.burst), None)
        else:
            self.note(found.id, ("accepted", found.promised - found.arrival), found.position)

    def note(self, number: int | None, answer: Answer, position: int | None) -> None:
        self.ids.append(number)
        self.kept.answers.append(answer)
        self.kept.positions.append(position)

    async def settle(self, op: Op) -> None:
        """End a job that runs."""
        claim = self.picked(op)
        if claim is not None:
            ended = Ended(claim.id, claim.tenant, claim.tries, DONE, result="1", usage=op.usage)
            assert await self.store.settle(ended)

    async def retry(self, op: Op) -> None:
        """Put a job that runs back."""
        claim = self.picked(op)
        if claim is not None:
            again = Again(claim.id, claim.tenant, claim.tries, op.delay, op.refused)
            assert await self.store.settle(again)

    async def withdraw(self, op: Op) -> None:
        """Cancel a job that waits, or one that runs before it began."""
        claim = self.picked(op)
        if claim is not None:
            await self.store.settle(
                Ended(claim.id, claim.tenant, claim.tries, CANCELLED, kind="cancelled", usage=NOTHING)
            )
        elif self.ids and (job := self.ids[op.pick % len(self.ids)]) is not None:
            ((tenant,),) = await self.store.rows(f"select tenant from waitline.job where id = {job}")
            await self.store.cancel(job, str(tenant))

    async def set_quota(self, op: Op) -> None:
        """Change a tenant's quota."""
        await self.store.set_quota(op.tenant, op.quota, self.quotas[op.tenant])

    async def hear(self, op: Op) -> None:
        """An upstream's answer to the call of a running job."""
        job = op.pick % len(self.ids) if self.ids else None
        claim = None if job is None else self.running.get(job)
        if claim is not None:
            heard = Heard(claim.gate, claim.id, claim.tenant, claim.cost, claim.slot, op.signal)
            await self.store.hearing._write([heard])

    async def resume(self, op: Op) -> None:
        """An operator opens a gate."""
        await self.store.hearing.resume([op.gate])

    async def look(self, op: Op) -> None:
        """Note when a job that stands in its line is expected to start."""
        job = self.ids[op.pick % len(self.ids)] if self.ids else None
        standing = "select tenant from waitline.job where id = $1 and (place is not null or turn is not null)"
        found = [] if job is None else await self.store.rows(standing.replace("$1", str(job)))
        if job is not None:
            await self.store.rows(FORGET_HOLD)
        known = await self.store.look(job, str(found[0][0])) if job is not None and found else None
        self.kept.looks.append(None if known is None else known.expected - START)

    async def advance(self, op: Op) -> None:
        """Let time pass."""

    def picked(self, op: Op) -> Claim | None:
        """The running job that an operation is about: it will not run any more."""
        return self.running.pop(op.pick % len(self.ids), None) if self.ids else None

    # --- looking ------------------------------------------------------------------------------------

    async def record(self) -> Record:
        """What became of everything; the tenants' rows must count what there is."""
        wrong = await self.store.rows(WRONG)
        assert not wrong, f"tenant, waiting, running, work in line: {wrong}"
        wrong = await self.store.rows(WRONG_AT_GATES)
        assert not wrong, f"gate, running, state, jobs, lines: {wrong}"
        overtaken = await self.store.rows("select id from waitline.job where overtaken and tries < 2")
        self.kept.overtaken = {self.ids.index(int(str(number))) for (number,) in overtaken}
        found = await self.store.rows("select id, kind from waitline.job where state = 3")
        for number, *served in await self.store.rows(SERVED):
            self.kept.served[self.ids.index(int(str(number)))] = tuple(served)
        late = {"deadline": "timeout"}  # it would be, by the time that jobs take
        self.kept.ends = {
            self.ids.index(int(str(id_))): late.get(str(kind), str(kind)) for id_, kind in found
        }
        return self.kept
