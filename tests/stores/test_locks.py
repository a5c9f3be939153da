"""What a transaction decides over it has locked: also what was made while it waited for its locks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from scheduler import Policy, Quota, Rate, Upstream
from scheduler.core.quota import NS, ONE
from scheduler.stores.postgres import PostgresStore, forgetting, gates, operations, settling
from scheduler.stores.postgres.connections import PINNED
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import DONE, FAILED, Ended, Request
from tests.stores.test_plans import QUOTA


@asynccontextmanager
async def transaction(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn, server_settings=PINNED)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


async def blocked(connection: asyncpg.Connection) -> None:
    """Wait until another transaction waits for a lock."""
    while not await connection.fetchval("select count(*) from pg_locks where not granted"):
        pass


async def count(connection: asyncpg.Connection, tenant: str) -> None:
    await connection.execute("update waitline.tenant set waiting = waiting + 1 where name = $1", tenant)


async def test_a_tenant_that_was_made_while_others_were_waited_for(dsn: str) -> None:
    """It was not there to be locked: whoever decides over it all the same undoes what others do."""
    async with transaction(dsn) as first:
        await Locked.made(first, {"zoo": QUOTA})
    async with transaction(dsn) as second:
        async with transaction(dsn) as first:
            await Locked.these(first, ["zoo"])
            await Locked.made(first, {"acme": QUOTA})
            waits = asyncio.create_task(Locked.these(second, ["acme", "zoo"]))
            await blocked(first)
            await count(first, "zoo")
        locked = await waits
        assert locked.states.keys() == {"zoo"}
        assert locked.states["zoo"].waiting == 1
        assert (await Locked.these(second, ["acme", "zoo"])).states.keys() == {"acme", "zoo"}


async def test_a_gate_is_made_when_nobody_decides_without_it(dsn: str) -> None:
    async with transaction(dsn) as second:
        async with transaction(dsn) as first:
            assert not (await Locked.these(first, ())).gates
            declares = asyncio.create_task(gates.declare(second, {"m": Upstream(Quota())}))
            await blocked(first)
            assert not (await Locked.these(first, ())).gates
        await declares
        assert (await Locked.these(second, ())).gates.keys() == {"m"}


async def test_a_job_that_is_tried_again_while_its_result_is_pruned(dsn: str) -> None:
    async with PostgresStore(dsn, keep=60) as store:
        job = (await store.submit(Request("acme", '"x"', QUOTA, Policy(), ONE))).id
        claimed = await store.claim("worker", 1)
        assert claimed is not None
        (claim,) = claimed.claims
        assert await store.settle(Ended(job, "acme", claim.tries, FAILED, kind="Broken"))
        async with transaction(dsn) as second:
            async with transaction(dsn) as first:
                assert await operations.revive(first, job)
                later = await first.fetchval("select waitline.now_ns()")
                prunes = asyncio.create_task(second.execute(statement("prune"), later, 5))
                await blocked(first)
            assert await prunes == "DELETE 0"
            assert await second.fetchval("select state from waitline.job where id = $1", job) == 0


async def test_a_conversation_that_goes_on_while_it_is_pruned(dsn: str) -> None:
    async with PostgresStore(dsn) as store:
        talks, session = store.conversations, "s" * 32
        await talks.begin(session, "acme", "chat", None, {})
        await talks.take(session, "one", 10**9)
        assert await talks.say(session, "one", 1, [{"role": "user", "content": "x"}])
        await talks.leave(session, "one")
        async with transaction(dsn) as second:
            async with transaction(dsn) as first:
                (taken,) = await first.fetch(statement("take_session"), session, "two", 10**9)
                assert taken["held"]
                later = await first.fetchval("select waitline.now_ns()")
                prunes = asyncio.create_task(second.execute(statement("prune_sessions"), later, 5))
                await blocked(first)
            assert await prunes == "DELETE 0"
        assert len(await talks.history(session)) == 1


async def test_a_heartbeat_waits_for_nobody(dsn: str) -> None:
    """Whoever has one of its rows may want another one next."""
    asked = Request("acme", '"x"', Quota(), Policy(), ONE)
    async with PostgresStore(dsn) as store:
        for _ in range(2):
            await store.submit(asked)
        claimed = await store.claim("w", 2)
        assert claimed is not None
        callers = [
            (await store.submit(asked._replace(prompt=None, home="here", lease=NS))).id for _ in range(2)
        ]
        async with transaction(dsn) as other, transaction(dsn) as connection:
            taken = [claimed.claims[1].id, callers[1]]
            await other.execute("update waitline.job set lease = lease where id = any($1)", taken)
            assert await store.beat(claimed.claims) == dict.fromkeys((c.id for c in claimed.claims), False)
            held = await connection.fetch(statement("home_beat"), callers, 5 * NS, "here")
            assert sorted(row["id"] for row in held) == callers
            leases = await connection.fetch("select id, lease from waitline.job order by id")
        before = {row["id"]: row["lease"] for row in leases}
        assert before[claimed.claims[0].id] > before[claimed.claims[1].id]
        assert before[callers[0]] > before[callers[1]]


async def test_a_rescue_takes_all_its_tenants_at_once(dsn: str) -> None:
    """Late jobs, those of dead processes: in one order, or it and a submit for both wait for each other."""
    hour = Quota(Rate(1, per=3600, burst=1))
    asked = Request("zulu", '"x"', hour, Policy(max_wait=None), ONE)
    async with PostgresStore(dsn) as store:
        for tenant in ("alpha", "zulu"):
            await store.submit(asked._replace(tenant=tenant))
        claimed = await store.claim("w", 2)
        assert claimed is not None
        late = await store.submit(asked._replace(timeout=7200 * NS))
        await store.submit(asked._replace(tenant="alpha", prompt=None, home="dead", lease=1))
        async with transaction(dsn) as second:
            await second.execute("update waitline.job set deadline = arrival + 1 where id = $1", late.id)
        async with transaction(dsn) as second:
            async with transaction(dsn) as first:
                await Locked.these(first, ["alpha"])
                rescue = asyncio.create_task(store.rescue(5))
                await blocked(first)
                # It waits for the first of its tenants, and has none that comes after that one.
                await second.execute("set local lock_timeout = '5s'")
                assert (await Locked.these(second, ["zulu"])).states
            assert not rescue.done()
        assert await rescue == 2


async def test_a_tenant_is_dropped_without_the_locks_of_others(dsn: str) -> None:
    """What may take long, a walk over all jobs, is no time in which nobody can pass a gate."""
    async with PostgresStore(dsn) as store:
        await store.hearing.declare({"m": Upstream(Quota())})
        for tenant in ("acme", "zoo"):
            await store.submit(Request(tenant, '"x"', Quota(), Policy(), ONE, key=tenant, gate="m"))
        await store.forget("acme")
        async with transaction(dsn) as first:
            await first.execute("delete from waitline.job where tenant = 'acme'")
            ((idle,), later) = await forgetting.idle_tenants(first, store.about() + NS, NS)
        async with transaction(dsn) as second, transaction(dsn) as first:
            assert await forgetting.drop_tenant(first, idle, later) == 1
            await second.execute("set local lock_timeout = '5s'")
            assert (await Locked.these(second, ["zoo"])).gates.keys() == {"m"}


async def test_a_tenant_that_is_charged_after_it_was_found_idle_is_not_dropped(dsn: str) -> None:
    """Or it would have a full bucket the next time; nor is one that has left a job behind."""
    hour = Quota(Rate(1, per=3600, burst=1))
    async with PostgresStore(dsn) as store:
        asked = Request("acme", None, hour, Policy(), ONE, home="here", lease=NS)
        async with transaction(dsn) as first:
            await Locked.made(first, {"acme": hour})
            await forgetting.mark(first, "acme")
            ((idle,), later) = await forgetting.idle_tenants(first, store.about(), NS)
        caller = await store.submit(asked)
        assert await store.claim("w", 1) is not None
        async with transaction(dsn) as first:
            assert await settling.settle(first, [Ended(caller.id, "acme", 1, DONE)]) == [True]
        async with transaction(dsn) as first:
            assert await first.fetchval("select count(*) from waitline.job") == 0
            assert await forgetting.drop_tenant(first, idle, later) == 0
            assert await first.fetchval("select forgotten from waitline.tenant") == later
