"""Late workers: what happened meanwhile is played again in order, so no slot depends on them."""

from __future__ import annotations

import asyncio

import pytest

from scheduler.core.policy import Policy
from scheduler.core.quota import NOTHING, NS, Cost, Quota, Rate
from tests.conformance.memory import Memory
from tests.conformance.record import compare
from tests.conformance.sides import same, to_the_end
from tests.conformance.stored import Stored, opened
from tests.core.play import MS, START, Op

TWO = Quota(Rate(2, burst=5))
LATE = 40 * MS


async def test_a_deadline_that_is_noticed_late_moves_those_behind_at_its_time(dsn: str) -> None:
    script = [Op("offer")] * 5 + [Op("offer", cost=Cost(5), timeout=2600 * MS)]
    script += [Op("offer"), Op("offer", head_start=MS)]
    script += [Op("set_quota", gap=MS, quota=Quota(Rate(1, burst=5)))]
    found = await same(dsn, {"a": TWO}, script, late=LATE)
    assert found.ends == {5: "timeout"}
    assert found.grants["a"][-1] == (6, 2600 * MS)


@pytest.mark.parametrize("late", [0, LATE])
async def test_the_next_of_a_session_follows_one_that_a_claim_ended(dsn: str, late: int) -> None:
    """The line moves a little before the deadline passes: whoever claims late notices both at once."""
    script = [Op("offer")] * 6 + [Op("offer", timeout=1010 * MS, session="s"), Op("offer", session="s")]
    script += [Op("set_quota", gap=10 * MS, quota=Quota(Rate(1, burst=5)))]
    found = await same(dsn, {"a": TWO}, script, late=late)
    assert found.ends == {6: "timeout"}
    assert found.grants["a"][5:] == [(5, 990 * MS), (7, 1990 * MS)]


async def test_the_next_of_a_session_follows_one_that_can_never_go_on(dsn: str) -> None:
    """Its quota got smaller while it was in backoff: it ends when that is over, however late."""
    script = [Op("offer", cost=Cost(2), session="s"), Op("retry", delay=NS, refused=True)]
    script += [Op("set_quota", quota=Quota(Rate(3, burst=1))), Op("offer", gap=1, session="s")]
    found = await same(dsn, {"a": TWO}, script, late=LATE)
    assert found.ends == {0: "never"}
    assert found.grants["a"] == [(0, 0), (1, NS)]


@pytest.mark.parametrize(
    ("quota", "policy"),
    [
        (TWO, Policy()),
        (TWO, Policy.strict()),
        (TWO, Policy(max_wait=0.5)),
        (Quota(TWO.requests, concurrency=2), Policy.strict()),
        (Quota(concurrency=2), Policy.strict()),
        (Quota(TWO.requests, input_tokens=Rate(10, burst=30)), Policy.strict()),
        (Quota(), Policy.strict()),
    ],
)
async def test_jobs_in_one_batch_are_answered_as_if_each_was_claimed_at_once(
    dsn: str, quota: Quota, policy: Policy
) -> None:
    script = [Op("offer", policy=policy, cost=Cost(1, 8))] * 8
    memory = Memory.with_quotas({"a": quota}).run(to_the_end(script)).record()
    async with opened(dsn) as store:
        stored = Stored(store, {"a": quota})
        await asyncio.gather(*(stored.offer(op) for op in script))
        await store.move(START + LATE)
        await stored.pump()
        await stored.run([Op("advance"), *to_the_end(script)[len(script) :]])
        record = await stored.record()
        record.positions = memory.positions  # whoever no worker has taken yet is ahead of those behind
        compare(memory, record, {"a": quota}, script)


async def test_a_claim_far_too_late_moves_the_schedule_by_what_is_beyond_the_cap(dsn: str) -> None:
    """The line was not served for 9 seconds: nobody gets the permits of that time at once.

    The cap is half a second, in which a permit refills: that long ago the bucket was full.
    """
    async with opened(dsn) as store:
        stored = Stored(store, {"a": TWO})
        for op in [Op("offer")] * 8:
            await stored.offer(op)
        await store.move(START + 9 * NS)
        await stored.pump()
        assert [slot for _, slot in stored.kept.grants["a"]] == [8500 * MS] * 5 + [9000 * MS]


async def test_what_a_dead_worker_held_goes_again_when_its_lease_is_over(dsn: str) -> None:
    """As if it had put the jobs back at that moment."""
    offers = [Op("offer", gap=MS)] * 7
    back = [Op("retry", gap=gap * MS, pick=job) for job, gap in enumerate((1994, 1, 1, 1, 1))]
    memory = Memory.with_quotas({"a": TWO}).run([*offers, *back, Op("advance", gap=400 * MS)]).record()
    async with opened(dsn, lease=2.0) as store:
        stored = await Stored(store, {"a": TWO}).run(offers)
        stored.running.clear()  # it died
        await stored.until(START + 2405 * MS)
        assert stored.kept.grants == memory.grants
        assert memory.grants["a"][5:] == [(5, 501 * MS), (6, 1001 * MS), (0, 2001 * MS), (1, 2002 * MS)]


@pytest.mark.xfail(reason="a change moves the slot of whoever was due before it and not yet claimed")
@pytest.mark.parametrize(
    "change", [Op("settle", pick=0, usage=NOTHING), Op("set_quota", quota=Quota(Rate(4, burst=5)))]
)
async def test_a_change_before_a_late_claim_moves_no_slot(dsn: str, change: Op) -> None:
    """Law 13: every operation first advances to now. A store cannot grant where no worker asks."""
    script = [Op("offer")] * 7
    memory = Memory.with_quotas({"a": TWO}).run([*script, Op("advance", gap=520 * MS), change]).record()
    async with opened(dsn) as store:
        stored = await Stored(store, {"a": TWO}).run(script)
        await store.move(START + 520 * MS)
        await getattr(stored, change.kind)(change)
        await stored.pump()
        assert stored.kept.grants == memory.grants


async def test_a_job_that_is_overtaken_for_longer_than_it_may_wait_is_refused(dsn: str) -> None:
    script = [Op("offer")] * 5 + [Op("offer", policy=Policy(max_wait=0.5)), Op("offer", head_start=NS)]
    found = await same(dsn, {"a": TWO}, script)
    assert found.ends == {5: "max_wait"}
