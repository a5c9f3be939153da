"""Leases: whose a job is, and what becomes of it when its worker is gone."""

from __future__ import annotations

import pytest

from scheduler.core.policy import Policy
from scheduler.core.quota import NS, ONE, Quota, Rate
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.values import DONE, FAILED, Again, Claim, Ended, Request
from tests.conformance.stored import opened
from tests.stores.working import QUICK

ONE_AT_A_TIME = Quota(Rate(1000, burst=100), concurrency=1)


def request(prompt: str = '"x"') -> Request:
    return Request("acme", prompt, ONE_AT_A_TIME, Policy(), ONE)


def done(claim: Claim, result: str) -> Ended:
    return Ended(claim.id, claim.tenant, claim.tries, DONE, result)


async def claimed(store: PostgresStore, worker: str) -> list[Claim]:
    found = await store.claim(worker, 10)
    return [] if found is None else found.claims


async def rescued(store: PostgresStore, max_attempts: int = 5) -> None:
    """Wait until the lease of a lost worker is over, and take over what it held."""
    while not await store.rescue(max_attempts):
        pass


async def test_a_result_is_recorded_only_by_the_try_that_holds_the_lease(dsn: str) -> None:
    """A worker stalls, loses its job, and comes back with an answer: there is another one by then."""
    async with PostgresStore(dsn, lease=0.05) as store:
        accepted = await store.submit(request())
        (stalled,) = await claimed(store, "stalled")
        await rescued(store)
        (second,) = await claimed(store, "second")
        assert (second.id, second.attempt, second.tries) == (stalled.id, 2, 2)
        assert await store.settle(done(stalled, "late")) is False
        assert await store.settle(done(second, "second")) is True
        assert await store.settle(done(second, "again")) is False
        outcome = await store.await_outcome(accepted.id)
        assert (outcome.result, outcome.attempts) == ("second", 2)


async def test_the_slot_of_a_lost_worker_is_free_again_and_the_job_goes_first(dsn: str) -> None:
    async with PostgresStore(dsn, lease=0.05) as store:
        first = await store.submit(request())
        behind = await store.submit(request())
        (lost,) = await claimed(store, "lost")
        assert lost.id == first.id
        assert not await claimed(store, "other")
        await rescued(store)
        (again,) = await claimed(store, "other")
        assert again.id == first.id
        await store.settle(done(again, "1"))
        (last,) = await claimed(store, "other")
        assert last.id == behind.id
        await store.settle(done(last, "2"))
        assert await store.count("acme") | {"levels": None} == {
            "waiting": 0,
            "running": 0,
            "tenants": 1,
            "levels": None,
        }


async def test_a_lease_that_is_renewed_is_not_taken(dsn: str) -> None:
    async with PostgresStore(dsn, lease=60.0) as patient, PostgresStore(dsn, lease=0.01) as hasty:
        await hasty.submit(request())
        (held,) = await claimed(hasty, "hasty")
        assert await patient.beat([held]) == {held.id: False}
        assert await patient.rescue(5) == 0
        assert await patient.settle(done(held, "1")) is True
        assert await patient.beat([held]) == {}


async def test_a_job_whose_workers_are_lost_too_often_fails(dsn: str) -> None:
    async with PostgresStore(dsn, lease=0.02) as store:
        accepted = await store.submit(request())
        for attempt in (1, 2):
            (held,) = await claimed(store, f"lost {attempt}")
            assert held.attempt == attempt
            await rescued(store, max_attempts=2)
        outcome = await store.await_outcome(accepted.id)
        assert (outcome.state, outcome.kind, outcome.attempts) == (FAILED, "worker_lost", 2)


@pytest.mark.parametrize("slots", [1, 3])
async def test_jobs_that_come_back_together_go_in_their_order_however_few_there_is_room_for(
    dsn: str, slots: int
) -> None:
    async with opened(dsn) as store:
        ids = [(await store.submit(Request("acme", '"x"', QUICK, Policy(), ONE))).id for _ in range(8)]
        claimed = await store.claim("worker", 8)
        assert claimed is not None
        for claim in reversed(claimed.claims):
            assert await store.settle(Again(claim.id, "acme", claim.tries, NS, refused=True, counted=False))
        await store.move(store.now + 2 * NS)
        order: list[int] = []
        while found := await store.claim("worker", slots):
            order += [claim.id for claim in found.claims]
        assert order == ids


async def test_a_claim_ends_a_caller_whose_time_ran_out_in_line(dsn: str) -> None:
    """A claim may come before the rescue that looks for it: the lease of a waiting caller goes with it."""
    async with opened(dsn) as store:
        await store.submit(request())
        asked = Request("acme", None, ONE_AT_A_TIME, Policy(), ONE, timeout=NS, home="here", lease=9 * NS)
        caller = await store.submit(asked)
        await store.move(store.now + 2 * NS)
        assert len(await claimed(store, "worker")) == 1  # the job before it takes the only slot
        ended = await store.rows(f"select state, kind, lease from waitline.job where id = {caller.id}")
        assert ended == [(FAILED, "timeout", None)]
