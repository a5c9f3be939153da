"""Known scripts: the store grants the same jobs at the same slots in the same order as the engine."""

from __future__ import annotations

import pytest

from scheduler.core.policy import Policy
from scheduler.core.quota import NOTHING, NS, Cost, Quota, Rate, Usage
from tests.conformance.record import Record
from tests.conformance.sides import same
from tests.core.play import MS, PATIENT, Op

TWO = Quota(Rate(2, burst=5))
ONE_SLOT = Quota(Rate(2, burst=5), concurrency=1)
STRICT = Policy.strict()
TOKENS = Quota(Rate(2, burst=3), input_tokens=Rate(100, burst=300), output_tokens=Rate(7, burst=50))


def slots(record: Record, tenant: str = "a") -> list[float]:
    return [slot / NS for _, slot in record.grants[tenant]]


def jobs(record: Record, tenant: str = "a") -> list[int]:
    return [job for job, _ in record.grants[tenant]]


async def test_the_example_that_everyone_knows(dsn: str) -> None:
    """Rate 2 per second, burst 5: five at once, then one every half second."""
    found = await same(dsn, {"a": TWO}, [Op("offer")] * 8)
    assert slots(found) == [0, 0, 0, 0, 0, 0.5, 1.0, 1.5]
    assert found.answers[-1] == ("accepted", 1_500 * MS)


async def test_tenants_do_not_see_each_other(dsn: str) -> None:
    script = [Op("offer", tenant=tenant) for tenant in "abab" * 3] + [Op("offer", gap=700 * MS, tenant="b")]
    found = await same(dsn, {"a": Quota(Rate(1, burst=2)), "b": Quota(Rate(3))}, script)
    assert slots(found, "a") == [0, 0, 1, 2, 3, 4]
    assert len(found.grants["b"]) == 7


async def test_a_settle_gives_its_slot_to_the_next(dsn: str) -> None:
    script = [Op("offer")] * 4 + [Op("settle", gap=130 * MS, pick=job) for job in range(4)]
    found = await same(dsn, {"a": ONE_SLOT}, script)
    assert slots(found) == [0, 0.13, 0.26, 0.39]


async def test_those_behind_a_cancelled_job_move_up_at_that_instant(dsn: str) -> None:
    script = [Op("offer")] * 9 + [Op("withdraw", gap=200 * MS, pick=6), Op("withdraw", gap=1, pick=5)]
    found = await same(dsn, {"a": TWO}, script)
    assert slots(found)[5:] == [0.5, 1.0]
    assert jobs(found)[5:] == [7, 8]


async def test_a_large_job_that_is_cancelled_lets_the_small_ones_go(dsn: str) -> None:
    script = [Op("offer")] * 3 + [Op("offer", cost=Cost(5)), Op("offer"), Op("offer")]
    found = await same(dsn, {"a": TWO}, [*script, Op("withdraw", gap=200 * MS, pick=3)])
    assert slots(found)[3:] == [0.2, 0.2]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (NOTHING, [0.1, 0.5, 1.0]),
        (Usage(1), [0.5, 1.0, 1.5]),
        (Usage(2), [1.0, 1.5, 2.0]),
        (Usage(0, 900, 900), [0.1, 0.5, 1.0]),
    ],
)
async def test_usage_moves_those_behind(dsn: str, usage: Usage, expected: list[float]) -> None:
    """Below the estimate they move up, above it they move back."""
    script = [Op("offer")] * 8 + [Op("settle", gap=100 * MS, pick=2, usage=usage)]
    found = await same(dsn, {"a": TWO}, script)
    assert slots(found)[5:] == expected


@pytest.mark.parametrize(
    ("policy", "delay", "slot"),
    [(PATIENT, 5 * NS, 1.0), (Policy(max_wait=3), 5 * NS, 0.1), (PATIENT, 20 * NS, 1.0)],
    ids=["cancelled", "not allowed to wait", "cancelled in a long backoff"],
)
async def test_a_refused_try_costs_nothing_if_there_is_no_other(
    dsn: str, policy: Policy, delay: int, slot: float
) -> None:
    """Its permit is there for the next job from the moment on when that is certain."""
    script = [
        Op("offer", policy=policy),
        Op("offer"),
        Op("retry", gap=100 * MS, pick=0, delay=delay, refused=True),
        Op("withdraw", gap=900 * MS, pick=0),
        Op("advance", gap=NS),
    ]
    found = await same(dsn, {"a": Quota(Rate(1, per=10, burst=1))}, script)
    assert slots(found)[1] == slot


async def test_a_retry_keeps_its_place_and_pays_again(dsn: str) -> None:
    script = [Op("offer")] * 8 + [Op("retry", gap=100 * MS, pick=0, delay=150 * MS), Op("offer")]
    found = await same(dsn, {"a": TWO}, script)
    assert jobs(found)[5:] == [0, 5, 6, 7, 8]
    assert slots(found)[5:] == [0.5, 1.0, 1.5, 2.0, 2.5]


async def test_a_job_in_backoff_stands_outside_its_line(dsn: str) -> None:
    script = [Op("offer")] * 8 + [Op("retry", gap=100 * MS, pick=0, delay=600 * MS)]
    found = await same(dsn, {"a": TWO}, script)
    assert jobs(found)[5:] == [5, 0, 6, 7]


async def test_a_job_that_was_refused_upstream_does_not_pay_again(dsn: str) -> None:
    script = [Op("offer")] * 8 + [Op("retry", gap=100 * MS, pick=0, delay=150 * MS, refused=True)]
    script += [Op("retry", gap=200 * MS, pick=0, delay=0, refused=True)]
    found = await same(dsn, {"a": TWO}, script)
    assert found.grants["a"][5:8] == [(0, 250 * MS), (0, 300 * MS), (5, 500 * MS)]


async def test_a_retry_that_may_not_wait_so_long_ends_the_job(dsn: str) -> None:
    patient, urgent = Policy(max_wait=1.0), 500 * MS
    script = [Op("offer", policy=patient), Op("offer", timeout=urgent), Op("offer", policy=patient)]
    script += [Op("retry", pick=0, delay=NS + 1), Op("retry", pick=1, delay=urgent)]
    found = await same(dsn, {"a": TWO}, [*script, Op("retry", pick=2, delay=NS)])
    assert found.ends == {0: "max_wait", 1: "timeout"}


async def test_a_retry_at_once_is_not_granted_before_it_came_back(dsn: str) -> None:
    script = [Op("offer"), Op("retry", gap=100 * MS, pick=0), Op("retry", gap=MS, pick=0)]
    found = await same(dsn, {"a": TWO}, script)
    assert found.grants["a"] == [(0, 0), (0, 100 * MS), (0, 101 * MS)]


async def test_those_refused_one_after_another_get_different_times(dsn: str) -> None:
    script = [Op("offer", policy=STRICT)] * 9 + [Op("offer", gap=700 * MS, policy=STRICT)] * 3
    found = await same(dsn, {"a": TWO}, script)
    refused = [answer for answer in found.answers if answer[0] == "refused"]
    assert refused[:4] == [("refused", "strict", time * MS) for time in (500, 1000, 1500, 2000)]


async def test_refusals_are_remembered_when_the_quota_changes(dsn: str) -> None:
    script = [Op("offer", policy=STRICT)] * 8 + [Op("set_quota", gap=MS, quota=TOKENS)]
    script += [Op("offer", policy=STRICT)] * 3 + [Op("set_quota", gap=MS, quota=Quota(Rate(7)))]
    await same(dsn, {"a": TWO}, [*script, *[Op("offer", policy=STRICT)] * 3])


@pytest.mark.parametrize("quota", [Quota(), Quota(concurrency=3), Quota(Rate(2, burst=5), concurrency=3)])
async def test_those_outside_the_line_take_no_place_in_it(dsn: str, quota: Quota) -> None:
    """Neither a slot, nor one of those that may start at once."""
    script = [Op("offer")] * 2 + [Op("retry", gap=MS, pick=job, delay=9 * NS) for job in (0, 1)]
    await same(dsn, {"a": quota}, [*script, *[Op("offer", policy=Policy(max_wait=0, max_queue=2))] * 4])


async def test_strict_jobs_start_beside_one_that_stands_outside_the_line(dsn: str) -> None:
    script = [Op("offer"), Op("retry", pick=0, delay=9 * NS), *[Op("offer", policy=STRICT)] * 5]
    found = await same(dsn, {"a": TWO}, script)
    assert jobs(found)[:5] == [0, 1, 2, 3, 4]


async def test_a_strict_job_with_a_head_start_goes_before_one_that_waits(dsn: str) -> None:
    script = [Op("offer")] * 3 + [Op("offer", cost=Cost(5)), Op("offer", policy=STRICT, head_start=NS)]
    found = await same(dsn, {"a": TWO}, script)
    assert jobs(found) == [0, 1, 2, 4, 3]


async def test_every_bound_refuses_with_its_reason(dsn: str) -> None:
    """Too long a wait, too long a line, a deadline, a slot, a cost above the burst."""
    script = [Op("offer")] * 7 + [
        Op("offer", policy=Policy(max_wait=1.0)),
        Op("offer", policy=Policy(max_wait=1.5)),
        Op("offer", policy=Policy(max_queue=3)),
        Op("offer", timeout=2 * NS),
        Op("offer", timeout=2 * NS + 1),
        Op("offer", cost=Cost(6)),
        Op("offer", tenant="b"),
        Op("offer", tenant="b", policy=STRICT),
    ]
    found = await same(dsn, {"a": TWO, "b": ONE_SLOT}, script)
    assert [answer[1] for answer in found.answers[7:] if answer[0] == "refused"] == [
        "max_wait",
        "queue_full",
        "deadline",
        "slot",
    ]
    assert ("never", "requests", 6, 5) in found.answers


async def test_a_job_whose_deadline_passes_in_line_leaves_it(dsn: str) -> None:
    """For lack of a slot that was expected; those behind it move up at its deadline."""
    script = [Op("offer"), Op("offer", timeout=300 * MS), Op("offer"), Op("settle", gap=NS, pick=0)]
    found = await same(dsn, {"a": ONE_SLOT}, script)
    assert found.ends == {1: "timeout"}
    assert found.grants["a"] == [(0, 0), (2, NS)]


async def test_a_head_start_goes_before_those_who_came_a_little_earlier(dsn: str) -> None:
    script = [Op("offer")] * 7 + [Op("offer", gap=100 * MS, head_start=50 * MS), Op("offer", head_start=NS)]
    found = await same(dsn, {"a": TWO}, [*script, Op("offer", head_start=NS)])
    assert jobs(found)[5:] == [8, 9, 5, 6, 7]


async def test_jobs_of_one_session_run_one_after_the_other(dsn: str) -> None:
    script = [Op("offer", session="s")] * 3 + [Op("offer", session="t"), Op("offer")]
    script += [Op("settle", gap=50 * MS, pick=job) for job in range(3)]
    found = await same(dsn, {"a": TWO}, script)
    assert found.grants["a"] == [(0, 0), (3, 0), (4, 0), (1, 50 * MS), (2, 100 * MS)]


@pytest.mark.parametrize("way", [Op("withdraw", gap=MS, pick=5), Op("advance")])
async def test_the_next_of_a_session_comes_in_when_one_leaves_without_a_grant(dsn: str, way: Op) -> None:
    script = [Op("offer")] * 5 + [Op("offer", session="s", timeout=600 * MS), Op("offer", session="s")]
    script += [Op("offer"), way, Op("set_quota", gap=MS, quota=Quota(Rate(1, burst=5)))]
    found = await same(dsn, {"a": TWO}, script)
    assert 6 in jobs(found)


async def test_several_buckets_are_taken_together(dsn: str) -> None:
    amounts = [(1, 100, 10), (1, 250, 1), (1, 0, 45), (2, 300, 50), (1, 1, 1), (0, 9, 9)]
    costs = [Cost(*three) for three in amounts]
    script = [Op("offer", gap=gap * MS, cost=cost) for gap in (0, 3, 170) for cost in costs]
    script += [Op("offer", cost=cost, policy=STRICT) for cost in costs]
    script += [Op("settle", gap=77 * MS, pick=0, usage=Usage(1, 160, 2)), Op("offer", cost=Cost(1, 5, 5))]
    await same(dsn, {"a": TOKENS}, script)


@pytest.mark.parametrize(
    "quota",
    [
        Quota(Rate(4, burst=10)),
        Quota(Rate(1, burst=3)),
        Quota(Rate(2, burst=5), input_tokens=Rate(10, burst=20)),
        Quota(concurrency=1),
        Quota(input_tokens=Rate(10, burst=20)),
    ],
)
async def test_a_quota_changes_with_jobs_waiting(dsn: str, quota: Quota) -> None:
    """Levels are kept, those who can never fit any more end, and those behind them move up."""
    script = [Op("offer", cost=cost) for cost in (Cost(4), Cost(4, 15), Cost(1, 21), Cost(1), Cost(2))]
    script += [Op("set_quota", gap=300 * MS, quota=quota), Op("offer", gap=MS), Op("offer", policy=STRICT)]
    await same(dsn, {"a": TWO}, [*script, Op("set_quota", gap=400 * MS, quota=TWO)])


async def test_more_jobs_than_slots_may_run_after_a_change(dsn: str) -> None:
    script = [Op("offer")] * 3 + [Op("set_quota", quota=ONE_SLOT), Op("offer"), Op("offer", gap=MS)]
    await same(dsn, {"a": TWO}, [*script, *[Op("settle", gap=MS, pick=job) for job in range(4)]])


async def test_jobs_outside_the_line_that_can_never_fit_any_more_end(dsn: str) -> None:
    """Behind their session, or in backoff."""
    script = [Op("offer", session="s"), Op("offer", session="s", cost=Cost(3)), Op("offer", session="s")]
    script += [Op("offer", cost=Cost(2)), Op("retry", gap=MS, pick=3, delay=500 * MS)]
    script += [Op("set_quota", gap=MS, quota=Quota(Rate(2, burst=1))), Op("settle", gap=NS, pick=0)]
    found = await same(dsn, {"a": TWO}, script)
    assert found.ends == {1: "never", 3: "never"}
    assert jobs(found) == [0, 3, 2]


async def test_behind_its_session_a_job_that_can_never_fit_any_more_ends_with_the_change(dsn: str) -> None:
    """Not when it would come in, or its time is over."""
    script = [Op("offer", session="s"), Op("offer", session="s", cost=Cost(3), timeout=NS)]
    script += [Op("set_quota", gap=MS, quota=Quota(Rate(2, burst=1))), Op("settle", gap=2 * NS, pick=0)]
    assert (await same(dsn, {"a": TWO}, script)).ends == {1: "never"}


@pytest.mark.parametrize("rate", [3, 7])
@pytest.mark.parametrize("cost", [1, 90])
async def test_odd_rates_do_not_drift(dsn: str, rate: int, cost: int) -> None:
    """Cost and burst equal: what comes in below one nanosecond is carried, not clipped."""
    count = 60 if cost == 1 else 40
    script = [Op("offer", cost=Cost(cost))] * count + [Op("advance", gap=10_000 * NS)]
    found = await same(dsn, {"a": Quota(Rate(rate, burst=cost))}, script)
    assert [slot for _, slot in found.grants["a"]] == [-(-n * cost * NS // rate) for n in range(count)]
