"""Ladders and deferred jobs over PostgreSQL, where something else happens to a job at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import Answer, Cost, Job, JobFailed, Policy, Quota, Rate, Rung, Scheduler, Signal, Upstream
from scheduler.core.quota import NS, ONE
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.gates import hear
from scheduler.stores.values import DONE, FAILED, Accepted, Again, Claim, Ended, Heard, Request
from scheduler.worker import Worker
from tests.conformance.stored import WRONG, WRONG_AT_GATES, VirtualStore, opened
from tests.core.play import START
from tests.stores.test_gates import gated
from tests.stores.test_ladders import BATCH, OPEN, SLOW, SMALL, TWO, told

FREE = Quota()
PATIENT = Policy(max_wait=None)
SOONER = "update waitline.job set deadline = deadline - 7900000000000 where state = 0 returning 1"
CLOSE = Signal(Answer.SPEND_LIMIT)


async def declare(store: VirtualStore, **gates: Quota) -> None:
    await store.hearing.declare({name: Upstream(quota) for name, quota in gates.items()})


async def submit(
    store: VirtualStore, tenant: str, policy: Policy = PATIENT, gate: str | None = "large", **wishes: Any
) -> Accepted:
    quota, cost = wishes.pop("quota", FREE), wishes.pop("cost", Cost())
    return await store.submit(
        Request(tenant, '"…"', quota, policy, cost, gate=gate, most_deferred=10, **wishes)
    )


async def claim(store: VirtualStore) -> list[Claim]:
    claimed = await store.claim("w", 5)
    return [] if claimed is None else claimed.claims


async def deferred(store: VirtualStore, **wishes: Any) -> Accepted:
    """A job that was deferred, since another one of its tenant has the only permit."""
    await declare(store, large=SLOW, small=OPEN)
    await submit(store, "a", BATCH)
    await claim(store)
    return await submit(store, "a", BATCH, **wishes)


async def consistent(store: VirtualStore) -> None:
    assert not await store.rows(WRONG)
    assert not await store.rows(WRONG_AT_GATES)


# --- sessions, backoffs, closing --------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [None, "large"])
@pytest.mark.parametrize("way", ["expire", "forget"])
async def test_two_jobs_of_a_session_that_end_together(dsn: str, gate: str | None, way: str) -> None:
    """The one behind is not let into the line that it leaves."""
    async with opened(dsn) as store:
        if gate is not None:
            await declare(store, large=FREE)
        await submit(store, "a", quota=SLOW, gate=gate)
        await claim(store)
        for _ in range(2):
            await submit(store, "a", quota=SLOW, gate=gate, session="s", timeout=8000 * NS)
        await store.rows(
            "update waitline.job set deadline = deadline - 7900000000000 where state = 0 returning 1"
        )
        await store.move(START + 200 * NS)
        if way == "forget":
            await store.forget("a")
        else:
            await store.rescue(5)
        await consistent(store)


async def test_a_gate_closes_while_a_job_waits_behind_its_session(dsn: str) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def work(job: Job) -> str:
        begun.set()
        await release.wait()
        job.hear(CLOSE)
        return "done"

    async with gated(dsn, {"m": Quota(concurrency=5)}, work) as scheduler:
        first = await scheduler.enqueue("a", "first", session="s")
        await begun.wait()
        second = await scheduler.enqueue("a", "second", session="s")
        release.set()
        assert await first.result() == "done"
        with pytest.raises(Exception, match="spend_limit"):
            await second.result()


async def test_a_job_that_came_back_from_a_backoff_is_deferred(dsn: str) -> None:
    policy = Policy(max_wait=None, ladder=[Rung(15, defer="batch")])
    async with opened(dsn) as store:
        await declare(store, large=Quota(Rate(1, per=10, burst=1)))
        await submit(store, "a", policy)
        (first,) = await claim(store)
        await store.settle(Again(first.id, "a", first.tries, NS))
        await store.move(START + 2 * NS)
        await claim(store)
        await store.move(START + 16 * NS)
        limited = Signal(Answer.RATE_LIMITED, 60.0)
        await store.hearing._write([Heard("large", 1, "a", Cost(), store.now, limited)])
        await store.rescue(5)
        (taken,) = await store.claim_deferred("w", 5)
        assert taken.id == first.id
        await consistent(store)


async def test_a_probe_takes_no_rung(dsn: str) -> None:
    """It would leave its gate closed, and nobody asking."""
    async with opened(dsn) as store:
        await declare(store, large=Quota(concurrency=5), small=OPEN)
        await store.hearing._write([Heard("large", 1, "a", Cost(), START, CLOSE)])
        await store.move(START + 3601 * NS)
        await submit(store, "a", SMALL)
        await store.move(START + 3612 * NS)  # all workers are busy
        assert await store.rescue(5) == 1
        assert await store.rescue(5) == 0, "it is looked at again when that may help, and not at once"
        (probe,) = await claim(store)
        assert probe.gate == "large"


async def test_who_took_all_rungs_is_refused_at_a_gate_that_closes(dsn: str) -> None:
    """Also where the process that heard of it has died."""
    async with opened(dsn) as store:
        await declare(store, large=SLOW, small=Quota(concurrency=1))
        await submit(store, "z", gate="small")
        await submit(store, "a", SMALL)
        await claim(store)
        job = await submit(store, "a", SMALL)  # at the small gate, and there is no other rung
        async with store._connections.transaction() as connection:
            await hear(connection, [Heard("small", 1, "z", Cost(), START, CLOSE)])
        await store.rescue(5)
        assert await store.rows(f"select kind from waitline.job where id = {job.id}") == [("spend_limit",)]
        await consistent(store)


async def test_a_job_that_can_never_fit_any_more_goes_another_way(dsn: str) -> None:
    policy = Policy(max_wait=None, ladder=[Rung(10, gate="small")])
    async with opened(dsn) as store:
        await declare(store, large=Quota(input_tokens=Rate(100, burst=6000), concurrency=1), small=OPEN)
        cost = Cost(1, 3000, 0)
        await submit(store, "z", policy, cost=cost)
        (first,) = await claim(store)
        await submit(store, "a", policy, cost=cost)
        await submit(store, "b", cost=cost)
        lower = Signal(Answer.ACCEPTED, limits={"input_tokens": 1000})
        await store.hearing._write([Heard("large", first.id, "z", cost, first.slot, lower)])
        granted = await claim(store)
        await store.rescue(5)
        granted += await claim(store)
        assert [(job.tenant, job.gate) for job in granted] == [("a", "small")]
        assert await store.rows("select kind from waitline.job where tenant = 'b'") == [("never",)]
        await consistent(store)


async def test_a_job_behind_its_session_is_not_looked_at_all_the_time(dsn: str) -> None:
    async with opened(dsn) as store:
        await declare(store, large=SLOW, small=OPEN)
        await submit(store, "a", SMALL, gate="small", session="s")
        await claim(store)
        await submit(store, "a", SMALL, gate="small", session="s")
        looks = 0
        for _ in range(60):
            await store.move(store.now + NS)
            looks += await store.hearing.look_at_ladders()
        assert looks <= 1


@pytest.mark.parametrize("wrong", [{"max_tokens": 1 << 31}, {"model": "a\0b"}, {"model": "\ud800"}])
def test_a_rung_that_no_store_can_keep_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Rung(1, **wrong)


# --- deferred ---------------------------------------------------------------------------------------------


async def test_deferred_jobs_take_no_room_from_others(dsn: str) -> None:
    async def never(_: Job) -> None:
        await asyncio.Event().wait()

    async with gated(dsn, TWO, workers=0, deferred=told) as scheduler:
        async with scheduler.admit("a", gate="large"):
            pass
        for number in range(2):
            await scheduler.enqueue("a", f"{number}", gate="large", policy=BATCH)
        worker = Worker(told, PostgresStore(dsn), concurrency=1, deferred=never)
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run(signals=False))
            for number in range(5):
                await scheduler.submit("b", f"{number}", gate="small")
            worker.stop()
            worker.stop()


async def test_a_deferred_job_that_failed_can_be_tried_again(dsn: str) -> None:
    async with opened(dsn) as store:
        job = await deferred(store)
        (taken,) = await store.claim_deferred("w", 5)
        await store.settle(Ended(taken.id, "a", taken.tries, FAILED, kind="X"))
        assert await store.revive(job.id)
        await consistent(store)


async def test_the_deadline_of_a_deferred_job_ends_it_although_nobody_takes_it(dsn: str) -> None:
    async with opened(dsn) as store:
        job = await deferred(store, timeout=NS)
        await store.move(START + 100 * NS)
        await store.rescue(5)
        found = await store.rows(f"select state, kind from waitline.job where id = {job.id}")
        assert found == [(FAILED, "timeout")]


async def test_a_stop_is_no_attempt(dsn: str) -> None:
    async with opened(dsn) as store:
        await deferred(store)
        for _ in range(5):
            (taken,) = await store.claim_deferred("w", 5)
            await store.settle(Again(taken.id, "a", taken.tries, counted=False))
        (taken,) = await store.claim_deferred("w", 5)
        assert taken.attempt == 1


@pytest.mark.parametrize("way", ["cancel", "forget"])
async def test_a_deferred_job_ends_although_no_worker_is_there(dsn: str, way: str) -> None:
    async with gated(dsn, TWO, workers=0, deferred=told) as scheduler:
        async with scheduler.admit("a", gate="large"):
            pass
        ticket = await scheduler.enqueue("a", "later", gate="large", policy=BATCH)
        if way == "cancel":
            ticket.cancel()
        else:
            await scheduler.forget("a")
        with pytest.raises(JobFailed, match="cancelled"):
            await ticket.result()


async def test_a_deferred_job_goes_upstream_whatever_its_gate_says(dsn: str) -> None:
    async def work(job: Job) -> str:
        job.ensure_open()
        return "done"

    async with Scheduler(store=PostgresStore(dsn), gates=TWO, quotas=FREE, deferred=told) as scheduler:
        async with scheduler.admit("a", gate="large") as grant:
            grant.hear(Signal(Answer.ACCEPTED))
        ticket = await scheduler.enqueue("a", "x", gate="large", policy=BATCH)
        async with scheduler.admit("z", gate="small") as grant:
            grant.hear(CLOSE)
        worker = Worker(told, PostgresStore(dsn), deferred=work)
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run(signals=False))
            assert await ticket.result() == "done"
            worker.stop()


async def test_a_process_that_has_not_heard_of_gates_ends_a_deferred_job(dsn: str) -> None:
    """The notification may be lost, or on its way: the job held no slot all the same."""
    async with opened(dsn) as store:
        await deferred(store)
        (taken,) = await store.claim_deferred("w", 5)
        store.hearing.gates = {}
        assert await store.settle(Ended(taken.id, "a", taken.tries, DONE, "1", plain=True))
        await consistent(store)


async def test_a_refused_try_of_a_job_that_is_deferred_costs_nothing(dsn: str) -> None:
    """It is served without permits: those of the try that came to nothing go back to its tenant."""
    two = Quota(Rate(1, per=3600, burst=2))
    async with opened(dsn) as store:
        await declare(store, large=SLOW, small=OPEN)
        await submit(store, "a", BATCH, quota=two)
        (taken,) = await claim(store)
        await store.settle(Again(taken.id, "a", taken.tries, refused=True, counted=False))
        await store.move(START + 11 * NS)
        assert await store.rescue(5) == 1
        assert len(await store.claim_deferred("w", 5)) == 1
        account, now = await store.see(Request("a", None, two, PATIENT, ONE))
        assert account.levels(now)["requests"] == 2
        await consistent(store)
