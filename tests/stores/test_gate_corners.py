"""Gates over PostgreSQL, where a claim sees only a part of those who wait, or somebody is away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from scheduler import Answer, Cost, Policy, Quota, Rate, Scheduler, Signal, Upstream, Usage
from scheduler.core.quota import NS
from scheduler.stores.postgres import PostgresStore, gating
from scheduler.stores.postgres.claiming import Claimed
from scheduler.stores.values import DONE, Accepted, Claim, Ended, Heard, Request
from scheduler.worker import Worker
from tests.conformance.stored import VirtualStore, opened
from tests.core.play import MS, START
from tests.stores.test_gates import gated

FREE = Quota()
PATIENT = Policy(max_wait=None)


LATE = "update waitline.tenant set zeros = array[zeros[1] + 5000000000] returning 1"
"""Permits come five seconds later."""


async def submit(store: VirtualStore, tenant: str, **wishes: Any) -> Accepted:
    quota, cost = wishes.pop("quota", FREE), wishes.pop("cost", Cost())
    wishes.setdefault("gate", "x")
    return await store.submit(Request(tenant, '"…"', quota, PATIENT, cost, **wishes))


async def declare(store: VirtualStore, quota: Quota, **more: Any) -> None:
    await store.hearing.declare({"x": Upstream(quota, **more)})


async def all_claims(store: VirtualStore, slots: int) -> list[Claim]:
    """Claim with so many slots each time, until nothing is due; each claim that says more goes on."""
    found: list[Claim] = []
    for _ in range(1000):
        claimed = await store.claim("w", slots)
        if claimed is None or not (claimed.more or claimed.claims):
            return found
        found += claimed.claims
    raise AssertionError(f"claims without end, after {len(found)} jobs")


async def end(store: VirtualStore, claims: Sequence[Claim]) -> None:
    for claim in claims:
        await store.settle(Ended(claim.id, claim.tenant, claim.tries, DONE, "1"))


@pytest.mark.parametrize(("tenants", "jobs", "slots"), [(1, 12, 1), (40, 12, 256), (1, 300, 256)])
async def test_a_backlog_that_came_over_time_is_claimed(
    dsn: str, tenants: int, jobs: int, slots: int
) -> None:
    """More of each line than one claim loads."""
    async with opened(dsn) as store:
        await declare(store, Quota(concurrency=1000))
        for _ in range(jobs):
            await store.move(store.now + MS)
            await asyncio.gather(*(submit(store, f"t{number}") for number in range(tenants)))
        await store.move(store.now + NS)
        found = await all_claims(store, slots)
        assert len(found) == tenants * jobs
        for tenant in {claim.tenant for claim in found}:
            ids = [claim.id for claim in found if claim.tenant == tenant]
            assert ids == sorted(ids)


async def test_newcomers_get_their_turn_where_workers_are_short(dsn: str) -> None:
    """The gate has room; one worker with one slot has not."""
    order: list[str] = []
    async with opened(dsn) as store:
        await declare(store, Quota(concurrency=50))
        for _ in range(20):
            await submit(store, "noisy")
        for second in range(10):
            claimed = await store.claim("w", 1)
            assert claimed is not None
            order += [claim.tenant for claim in claimed.claims]
            if second == 2:
                await store.move(store.now + NS // 2)
                for tenant in ("quiet", "small", "third"):
                    await submit(store, tenant)
            await store.move(store.now + NS)
            await end(store, claimed.claims)
    assert sorted(order[3:7]) == ["noisy", "quiet", "small", "third"]


async def test_those_behind_heads_that_expire_are_not_lost(dsn: str) -> None:
    """A claim loads one head more than it has slots: all of them may be gone by then."""
    async with opened(dsn) as store:
        await declare(store, Quota(concurrency=1))
        await submit(store, "z")
        (first,) = await all_claims(store, 1)
        for tenant in "abcd":
            await submit(store, tenant, timeout=500 * MS if tenant in "ab" else None)
            await store.claim("w", 1)
        await store.move(START + 2 * NS)  # nobody rescued: the worker was busy
        await end(store, [first])
        (second,) = await all_claims(store, 1)
        await end(store, [second])
        (third,) = await all_claims(store, 1)
        assert {second.tenant, third.tenant} == {"c", "d"}


async def test_more_lines_due_at_once_than_a_claim_loads_pass_in_order(dsn: str) -> None:
    names = [f"t{number:04}" for number in reversed(range(400))]
    async with opened(dsn) as store:
        await declare(store, Quota(Rate(1, burst=10)))
        await asyncio.gather(*(submit(store, name) for name in names))
        claimed = await store.claim("w", 100)
        assert claimed is not None
        assert [claim.tenant for claim in claimed.claims] == names[:10]


async def test_a_probe_may_call_and_opens_the_gate(dsn: str) -> None:
    async def work(job: Any) -> str:
        job.ensure_open()
        job.hear(Signal(Answer.ACCEPTED))
        return "done"

    gate = {"m": Upstream(Quota(concurrency=5), spend_probe=0.05)}
    async with gated(dsn, gate, work) as scheduler:
        async with scheduler.admit("a") as grant:
            grant.hear(Signal(Answer.SPEND_LIMIT))
        while not (known := (await scheduler.statistics()).gates["m"]).closed or known.paused > 0:
            pass
        assert await scheduler.submit("a", "probe") == "done"
        while (await scheduler.statistics()).gates["m"].closed:
            pass
        assert await scheduler.submit("b", "open again") == "done"


async def test_what_is_heard_counts_once_although_the_look_after_it_is_lost(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it heard again, one failure would be two, and a gate that is closed already closes for nobody."""
    async with opened(dsn) as store:
        await declare(store, Quota(concurrency=8))
        job = await submit(store, "a")
        look, write, lost = store.hearing.look, store.hearing._write, [ConnectionResetError()]
        writers = set()

        async def note(heard: Any) -> None:
            writers.add(asyncio.current_task())
            await write(heard)

        async def lose() -> None:
            if lost and asyncio.current_task() in writers:  # and not whoever heard of it by a notification
                raise lost.pop()
            await look()

        monkeypatch.setattr(store.hearing, "_write", note)
        monkeypatch.setattr(store.hearing, "look", lose)
        for answer in (Answer.OVERLOADED, Answer.SPEND_LIMIT):
            lost[:] = [ConnectionResetError()]
            store.hearing.hear(Heard("x", 1, "z", Cost(), START, Signal(answer)))
            await store.hearing.noted()
            assert not lost
        assert store.hearing.gates["x"].failures == 1
        assert await store.rows(f"select kind from waitline.job where id = {job.id}") == [("spend_limit",)]


@pytest.mark.parametrize("way", ["cancelled", "too large"])
async def test_a_probe_that_is_over_leaves_it_to_the_next(dsn: str, way: str) -> None:
    async with opened(dsn) as store:
        await declare(store, Quota(concurrency=5))
        await store.hearing._write([Heard("x", 1, "a", Cost(), START, Signal(Answer.SPEND_LIMIT))])
        await store.move(START + 3601 * NS)
        probe = await submit(store, "a", cost=Cost(2))
        if way == "cancelled":
            await store.cancel(probe.id, "a")
        else:
            await store.set_quota("a", Quota(Rate(1)), FREE)
        await submit(store, "b")
        (claim,) = await all_claims(store, 5)
        assert claim.tenant == "b"


async def test_fewer_slots_are_declared_while_some_are_withheld(dsn: str) -> None:
    async with opened(dsn) as store:
        for before in (None, 100):
            await declare(store, Quota(concurrency=before))
            overloaded = Signal(Answer.OVERLOADED)
            await store.hearing._write(
                [Heard("x", 1, "a", Cost(), store.now + n, overloaded) for n in (1, 2)]
            )
            await declare(store, Quota(concurrency=10))
            assert store.hearing.gates["x"].slots == 10


async def test_a_gate_without_a_bound_forgets_that_its_upstream_was_short(dsn: str) -> None:
    async with opened(dsn) as store:
        await declare(store, Quota(Rate(1000)))
        for answer, times in ((Answer.OVERLOADED, 1), (Answer.ACCEPTED, 40)):
            await store.hearing._write([Heard("x", 1, "a", Cost(), store.now, Signal(answer))] * times)
        assert not store.hearing.gates["x"].cut


async def test_a_caller_behind_a_job_is_admitted_when_its_permit_comes(dsn: str) -> None:
    """The worker that took the job has no room left, so that nobody else claims."""
    done = asyncio.Event()

    async def work(_: Any) -> None:
        await done.wait()

    worker = Worker(work, PostgresStore(dsn), concurrency=1)
    gate = {"m": Quota(Rate(5, burst=1))}
    async with (
        Scheduler(store=PostgresStore(dsn), gates=gate, quotas=FREE) as scheduler,
        asyncio.timeout(15),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(worker.run(signals=False))
        async with scheduler.admit("z"):
            pass
        await scheduler.enqueue("a", "x")
        async with scheduler.admit("a"):
            pass
        done.set()
        worker.stop()


async def test_homes_hear_when_a_caller_can_pass_sooner(dsn: str) -> None:
    heard: list[str] = []
    async with opened(dsn) as store:
        listener = await asyncpg.connect(dsn)
        await listener.add_listener("waitline_due", lambda *told: heard.append(str(told[-1])))
        await declare(store, Quota(Rate(1000, burst=1000), input_tokens=Rate(1, burst=100)))
        await submit(store, "z", cost=Cost(1, 90))
        (first,) = await all_claims(store, 5)
        await submit(store, "j", cost=Cost(1, 5))  # a job that no worker takes
        await submit(store, "h", cost=Cost(1, 60), home="H", lease=10**12)

        async def home() -> Claimed | None:
            async with store._connections.transaction() as connection:
                return await gating.claim(connection, "H", 0, store.now, 10**12)

        await home()
        await store.move(START + 200 * MS)
        await home()
        await store.move(START + 300 * MS)
        heard.clear()
        usage = Usage(1, 10, 0)
        await store.settle(Ended(first.id, "z", first.tries, DONE, "1", usage=usage))
        while not heard:
            await listener.execute("select 1")
        claimed = await home()
        assert claimed is not None
        assert len(claimed.callers) == 1
        await listener.close()


async def test_jobs_from_before_there_were_gates(dsn: str) -> None:
    """They go as they did; those of their session that came later pass the gate."""
    slow = Quota(Rate(1, burst=1))
    async with opened(dsn) as store:
        await submit(store, "a", gate=None, quota=slow)
        await all_claims(store, 5)
        await submit(store, "a", gate=None, quota=slow, session="s", timeout=1000 * MS + 5)
        await declare(store, Quota(concurrency=5))
        later = await submit(store, "a", quota=slow, session="s")
        await store.move(START + 2 * NS)
        await store.rows(LATE)
        assert (
            await all_claims(store, 5) == []
        )  # its deadline has passed, and the next of its session comes in
        await store.move(START + 20 * NS)
        assert [claim.id for claim in await all_claims(store, 5)] == [later.id]


async def test_a_job_without_a_gate_goes_on_when_one_at_a_gate_can_never_fit(dsn: str) -> None:
    slots = Quota(Rate(1, burst=5), concurrency=1)
    async with opened(dsn) as store:
        for _ in range(2):
            await submit(store, "a", gate=None, quota=slots)
            await all_claims(store, 5)
        await declare(store, Quota(concurrency=5))
        await submit(store, "a", cost=Cost(5), quota=slots)
        await all_claims(store, 5)
        await store.set_quota("a", Quota(Rate(1, burst=2), concurrency=2), slots)
        assert len(await all_claims(store, 5)) == 1


async def test_gates_that_were_named_otherwise(dsn: str) -> None:
    """What this process declares is what it means where it names none."""
    for gates in (Quota(Rate(5)), {"m": Quota(Rate(5))}, {"renamed": Quota(Rate(5))}):
        async with Scheduler(store=PostgresStore(dsn), gates=gates, quotas=FREE) as scheduler:
            await scheduler.enqueue("a", "x")
            found = (await scheduler.statistics()).gates
            assert found["renamed" if "renamed" in found else "m" if "m" in found else "default"].waiting == 1
