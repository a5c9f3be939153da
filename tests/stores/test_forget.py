"""A tenant is forgotten: nothing that it said stays, and nobody gets a full bucket by it."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from agent.postgres import PostgresSessions
from scheduler import Job, JobFailed, Quota, Rate, Scheduler
from scheduler.core.policy import Policy
from scheduler.core.quota import ONE
from scheduler.core.shared import SharedGate
from scheduler.core.signals import Upstream
from scheduler.core.stored import TenantState
from scheduler.stores.postgres import PostgresStore, forgetting
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.values import DONE, Ended, Request
from tests.stores.working import EXAMPLE, QUICK, working

SECRET = "a secret text"
PATIENT = Policy(max_wait=None)


async def everything(dsn: str) -> str:
    """All that the database says, as one text."""
    connection = await asyncpg.connect(dsn)
    try:
        tables = ("tenant", "job", "session", "turn")
        found = [await connection.fetch(f"select t::text from waitline.{table} as t") for table in tables]
        return "\n".join(row[0] for rows in found for row in rows)
    finally:
        await connection.close()


async def test_what_waits_is_cancelled_what_runs_is_stopped_and_nothing_is_left(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "PAGE", 3)
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(job: Job) -> str:
        if job.prompt != f"{SECRET} runs":
            return SECRET if job.tenant == "acme" else "other"
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return SECRET

    quota = Quota(Rate(1, per=3600, burst=3))
    async with working(dsn, handler, quota) as (scheduler, _):
        other = await scheduler.enqueue("umbra", "stays")
        done = await scheduler.enqueue("acme", SECRET, key=SECRET, session=SECRET)
        assert await done.result() == SECRET
        runs = await scheduler.enqueue("acme", f"{SECRET} runs", key=f"{SECRET} 2", session=SECRET)
        await began.wait()
        waits = [
            await scheduler.enqueue("acme", SECRET, key=f"{SECRET} {n}", policy=PATIENT) for n in range(3, 11)
        ]
        await scheduler.forget("acme")
        for ticket in (*waits[1:], runs):
            with pytest.raises(JobFailed) as failed:
                await ticket.result()
            assert failed.value.kind == "cancelled"
        await cancelled.wait()
        assert SECRET not in await everything(dsn)
        with pytest.raises(LookupError):
            await scheduler.ticket(done.id, tenant="acme")
        assert await other.result() == "other"
        again = await scheduler.enqueue("acme", "new", key=f"{SECRET} 2", policy=PATIENT)
        assert again.id != runs.id, "a key is free again"
        assert again.wait > 60, "and the bucket is as empty as it was"
        with pytest.raises(ValueError, match=r"^tenant: "):
            await scheduler.forget("")


async def test_a_result_that_comes_all_the_same_is_not_kept(dsn: str) -> None:
    async with PostgresStore(dsn) as store:
        sessions = PostgresSessions(store)
        accepted = await store.submit(Request("acme", f'"{SECRET}"', QUICK, Policy(), ONE, session="chat"))
        claimed = await store.claim("worker", 1)
        assert claimed is not None
        (held,) = claimed.claims
        await store.forget("acme")
        assert SECRET not in await everything(dsn), "not even while it runs"
        begun = await sessions.named("acme", "chat")  # by a handler that has not heard of it yet
        async with sessions.turn(begun.id) as turn:
            await turn.append([{"role": "user", "content": SECRET}])
        assert await store.settle(Ended(held.id, "acme", held.tries, DONE, f'{{"value": "{SECRET}"}}'))
        outcome = await store.await_outcome(accepted.id)
        assert (outcome.result, outcome.kind) == (None, "cancelled")
        assert SECRET not in await everything(dsn)
        assert (await store.count("acme"))["running"] == 0


async def test_a_forgotten_job_whose_worker_is_lost_is_not_tried_again(dsn: str) -> None:
    async with PostgresStore(dsn, lease=0.02) as store:
        accepted = await store.submit(Request("acme", f'"{SECRET}"', QUICK, Policy(), ONE))
        assert await store.claim("lost", 1) is not None
        await store.forget("acme")
        while not await store.rescue(5):
            pass
        assert (await store.await_outcome(accepted.id)).kind == "cancelled"
        assert await store.claim("other", 1) is None


async def test_conversations_go(dsn: str) -> None:
    async with PostgresStore(dsn) as store, Scheduler(store=store, quotas=EXAMPLE) as scheduler:
        sessions = PostgresSessions(store)
        kept = await sessions.named("umbra", "chat")
        for name in ("one", "two"):
            async with sessions.turn((await sessions.named("acme", name)).id) as turn:
                await turn.append([{"role": "user", "content": SECRET}])
        await scheduler.forget("acme")
        assert SECRET not in await everything(dsn)
        assert (await sessions.get(kept.id)).tenant == "umbra"


async def test_a_ticket_of_a_forgotten_result_says_so(dsn: str) -> None:
    async with working(dsn) as (scheduler, _):
        ticket = await scheduler.enqueue("acme", "x")
        while (await ticket.look()).state != "done":  # type: ignore[attr-defined]
            pass
        await scheduler.forget("acme")
        with pytest.raises(JobFailed) as failed:
            await ticket.result()
        assert failed.value.kind == "forgotten"


async def test_a_job_that_is_not_committed_yet_is_not_forgotten(dsn: str) -> None:
    async with working(dsn) as (scheduler, _):
        connection = await asyncpg.connect(dsn)
        async with connection.transaction():
            ticket = await scheduler.enqueue("acme", "x", connection=connection)
            waiting = asyncio.create_task(ticket.result())
            done, _ = await asyncio.wait([waiting], timeout=0.1)
            assert not done
        assert (await waiting)["prompt"] == "x"
        await connection.close()


async def tenants(dsn: str) -> list[str]:
    connection = await asyncpg.connect(dsn)
    try:
        return [
            row["name"] for row in await connection.fetch("select name from waitline.tenant order by name")
        ]
    finally:
        await connection.close()


@pytest.mark.parametrize("by_hand", [False, True])
async def test_the_row_of_a_tenant_goes_when_its_buckets_are_full(by_hand: bool, dsn: str) -> None:
    quota = Quota(Rate(10, burst=2))
    store = PostgresStore(dsn, keep=0.001)
    async with working(dsn, quota=quota) as (scheduler, _), store:
        if by_hand:
            await scheduler.set_quota("acme", quota)
        await asyncio.gather(*(scheduler.submit("acme", "x") for _ in range(2)))
        await scheduler.forget("acme")
        level: Any = (await scheduler.statistics("acme")).levels
        assert level["requests"] < 2
        assert await tenants(dsn) == ["acme"]
        connection = await asyncpg.connect(dsn)
        marked = "select count(*) from waitline.tenant where forgotten is not null"
        while await connection.fetchval(marked):
            await store.prune()
        await connection.close()
        assert await tenants(dsn) == (["acme"] if by_hand else []), "a quota that was set by hand stays"
        assert (await scheduler.submit("acme", "again"))["prompt"] == "again"


def test_who_had_more_than_its_share_is_not_dropped_while_others_wait_at_the_gate() -> None:
    """Or it would come back without its debt. If nobody waits, and in the next busy period, it has none."""
    gate, state = SharedGate("m", Upstream(Quota()), 0), TenantState.new("acme", Quota(), 0)
    state.line("m").finish, state.line("m").period = 10, gate.fair.period
    locked = Locked([state], [gate])
    assert not forgetting.owes(locked, state)
    gate.lines = 1
    assert forgetting.owes(locked, state)
    gate.fair.virtual = 10
    assert not forgetting.owes(locked, state)
    gate.fair.virtual, gate.fair.period = 0, 2
    assert not forgetting.owes(locked, state)
