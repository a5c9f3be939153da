"""Callers that run their own work stand in the lines of jobs: same grants, slots and order as in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.policy import Policy
from scheduler.core.quota import NS, Cost, Quota, Rate
from tests.conformance.callers import HOME, WithCallers, same_with_callers
from tests.conformance.stored import opened
from tests.conformance.test_traces import LATE, few, pairs, scripts, unbounded
from tests.core.play import MS, START, Op

TWO = Quota(Rate(2, burst=5))
ONE_SLOT = Quota(Rate(2, burst=5), concurrency=1)
KINDS = ("offer", "offer", "offer", "settle", "withdraw", "set_quota", "advance")


def odd(number: int) -> bool:
    return number % 2 == 1


@pytest.mark.parametrize("callers", [odd, lambda _: True, lambda number: number < 4])
@pytest.mark.parametrize("quota", [TWO, ONE_SLOT])
async def test_the_example_that_everyone_knows(dsn: str, quota: Quota, callers: object) -> None:
    script = [Op("offer")] * 8 + [Op("settle", gap=130 * MS, pick=job) for job in range(8)]
    found = await same_with_callers(dsn, {"a": quota}, script, callers)  # type: ignore[arg-type]
    assert [job for job, _ in found.grants["a"]] == list(range(8))


async def test_callers_are_refused_as_jobs_are(dsn: str) -> None:
    script = [Op("offer")] * 5 + [Op("offer", policy=Policy.strict())] * 6
    found = await same_with_callers(dsn, {"a": TWO}, script, odd)
    assert [answer[-1] for answer in found.answers[5:]] == [n * NS // 2 for n in range(1, 7)]


async def test_a_retry_that_a_process_without_slots_notices_first_keeps_its_slot(dsn: str) -> None:
    """It came back when its backoff was over, however late, and whoever puts it in line."""
    script = [Op("offer", cost=Cost(5)), Op("retry", gap=MS, pick=0, delay=5 * NS)]
    found = await same_with_callers(dsn, {"a": TWO}, script, odd, late=MS)
    assert found.grants["a"] == [(0, 0), (0, 5001 * MS)]


@few
@given(pairs, scripts(*KINDS, session=None), st.integers(1, 3))
async def test_jobs_and_callers_are_granted_as_in_memory(
    dsn: str, quotas: dict[str, Quota], script: list[Op], slots: int
) -> None:
    await same_with_callers(dsn, quotas, script, odd, slots=slots)


@few
@given(pairs, scripts(*KINDS, session=None, policy=unbounded), st.integers(1, LATE))
async def test_late_claims_change_no_slot_of_callers(
    dsn: str, quotas: dict[str, Quota], script: list[Op], late: int
) -> None:
    await same_with_callers(dsn, quotas, script, odd, late=late)


async def test_a_process_without_slots_neither_takes_nor_passes_a_job(dsn: str) -> None:
    """Whose head is due, but waits for a worker; the callers behind it wait with it."""
    async with opened(dsn) as store:
        stored = WithCallers(store, {"a": TWO}, is_caller=lambda number: number != 2)
        for _ in range(4):
            await stored.offer(Op("offer"))
        first = await stored.claim_callers()
        assert first is not None
        assert [caller for caller, _ in first.callers] == stored.ids[:2]
        assert not first.claims
        again = await stored.claim_callers()
        assert again is not None
        assert not again.moved
        worker = await store.claim("worker", 1)
        assert worker is not None
        assert [claim.id for claim in worker.claims] == stored.ids[2:3]
        homes = await store.rows("select id, slot, worker from waitline.job where home is not null")
        assert sorted(homes) == [(number, START, HOME) for number in (*stored.ids[:2], stored.ids[3])]
