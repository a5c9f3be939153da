"""Continuations of runs: over the store they go by their run's key, in its slot, as in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.ledger import PATIENCE
from scheduler.core.policy import Policy
from scheduler.core.quota import NS, Cost, Quota, Rate, Usage
from tests.conformance.callers import WithCallers, same_with_callers
from tests.conformance.record import Record
from tests.conformance.stored import VirtualStore, opened
from tests.conformance.test_traces import LATE, few, pairs, scripts, unbounded
from tests.core.play import MS, START, Op

TWO = Quota(Rate(2, burst=5))
ONE_SLOT = Quota(Rate(2, burst=2), concurrency=1)
STRICT = Policy.strict()

KINDS = ("offer", "offer", "chain", "chain", "settle", "withdraw", "retry", "set_quota", "advance")


def odd(number: int) -> bool:
    return number % 2 == 1


def nobody(_: int) -> bool:
    return False


def jobs(record: Record) -> list[int]:
    return [job for job, _ in record.grants["a"]]


@pytest.mark.parametrize("callers", [nobody, odd, lambda _: True])
async def test_a_continuation_goes_before_jobs_that_came_after_its_run(dsn: str, callers: object) -> None:
    """Also before those that arrived with the run, in one batch: behind its key, before the next."""
    script = [Op("offer")] * 8 + [Op("chain", pick=3), Op("chain", pick=1), Op("chain", pick=3)]
    found = await same_with_callers(dsn, {"a": TWO}, script, callers)  # type: ignore[arg-type]
    assert jobs(found) == [0, 1, 2, 3, 4, 9, 8, 10, 5, 6, 7]


async def test_a_continuation_uses_the_slot_of_its_run(dsn: str) -> None:
    """With one slot: it waits for permits alone, those behind it for the end of the run."""
    script = [Op("offer")] * 3 + [Op("chain", pick=0)] * 3 + [Op("settle", gap=5 * NS, pick=0)]
    found = await same_with_callers(dsn, {"a": ONE_SLOT}, script, nobody)
    assert found.grants["a"][:4] == [(0, 0), (3, 0), (4, 500 * MS), (5, NS)]
    assert found.grants["a"][4] == (1, 5 * NS)


async def test_a_continuation_passes_whoever_waits_for_the_slot_of_its_run(dsn: str) -> None:
    script = [Op("offer"), Op("offer", head_start=NS), Op("chain", pick=0), Op("chain", pick=0)]
    found = await same_with_callers(dsn, {"a": ONE_SLOT}, [*script, Op("settle", gap=2 * NS, pick=0)], odd)
    assert found.grants["a"] == [(0, 0), (2, 0), (3, 500 * MS), (1, 2 * NS)]


async def test_a_continuation_goes_behind_a_job_with_an_earlier_key_that_has_a_slot(dsn: str) -> None:
    script = [Op("offer")] * 5 + [Op("offer", head_start=NS), Op("chain", pick=0)]
    found = await same_with_callers(dsn, {"a": TWO}, script, nobody)
    assert jobs(found)[5:] == [5, 6]


@pytest.mark.parametrize("slots", [1, 100])
async def test_a_retry_comes_back_before_the_continuations_of_later_runs(dsn: str, slots: int) -> None:
    script = [Op("offer")] * 4 + [Op("retry", gap=MS, pick=0, delay=MS), Op("chain", pick=1, cost=Cost(5))]
    found = await same_with_callers(dsn, {"a": TWO}, [*script, Op("chain", pick=2)], nobody, slots=slots)
    assert jobs(found)[4:] == [0, 4, 5]


async def test_whoever_comes_behind_a_continuation_is_told_so(dsn: str) -> None:
    """Promise, position, strict refusals and quotes count it; the bound of the line does not."""
    script = [Op("offer")] * 5 + [Op("chain", pick=0, cost=Cost(3)), Op("chain", pick=0)]
    script += [Op("offer", policy=Policy(max_queue=2))] * 3 + [Op("offer", policy=STRICT)] * 2
    found = await same_with_callers(dsn, {"a": TWO}, script, odd)
    assert found.answers[5:] == [
        ("accepted", 1500 * MS),
        ("accepted", 2 * NS),
        ("accepted", 2500 * MS),
        ("accepted", 3 * NS),
        ("refused", "queue_full", 3500 * MS),
        ("refused", "strict", 4 * NS),
        ("refused", "strict", 4500 * MS),
    ]


async def test_usage_of_a_continuation_is_corrected_and_frees_no_slot(dsn: str) -> None:
    script = [Op("offer"), Op("chain", pick=0), Op("offer"), Op("offer", gap=MS)]
    script += [Op("settle", gap=MS, pick=1, usage=Usage(0)), Op("settle", gap=MS, pick=0)]
    found = await same_with_callers(dsn, {"a": ONE_SLOT}, script, nobody)
    assert found.grants["a"][:3] == [(0, 0), (1, 0), (2, 3 * MS)]


async def test_a_continuation_that_leaves_lets_those_behind_it_move_up(dsn: str) -> None:
    script = [Op("offer")] * 5 + [Op("chain", pick=4, cost=Cost(4)), Op("offer")]
    found = await same_with_callers(dsn, {"a": TWO}, [*script, Op("withdraw", gap=600 * MS, pick=5)], nobody)
    assert found.grants["a"][5:] == [(6, 600 * MS)]


async def test_a_continuation_that_can_never_fit_any_more_ends(dsn: str) -> None:
    script = [Op("offer")] * 4 + [Op("chain", pick=0, cost=Cost(3)), Op("offer")]
    script += [Op("set_quota", gap=MS, quota=Quota(Rate(2, burst=2)))]
    found = await same_with_callers(dsn, {"a": TWO}, script, nobody)
    assert found.ends == {4: "never"}


@few
@given(pairs, scripts(*KINDS), st.integers(1, 3))
async def test_jobs_and_continuations_are_granted_as_in_memory(
    dsn: str, quotas: dict[str, Quota], script: list[Op], slots: int
) -> None:
    await same_with_callers(dsn, quotas, script, nobody, slots=slots)


@few
@given(pairs, scripts(*KINDS, session=None, policy=unbounded), st.integers(1, LATE))
async def test_late_claims_change_no_slot_of_continuations(
    dsn: str, quotas: dict[str, Quota], script: list[Op], late: int
) -> None:
    await same_with_callers(dsn, quotas, script, nobody, late=late)


@few
@given(pairs, scripts("offer", "chain", "chain", "settle", "withdraw", "advance", session=None))
async def test_continuations_of_callers_are_granted_as_in_memory(
    dsn: str, quotas: dict[str, Quota], script: list[Op]
) -> None:
    await same_with_callers(dsn, quotas, script, odd)


@pytest.mark.parametrize("claimers", [2, 5])
@few
@given(quotas=pairs, script=scripts(*KINDS))
async def test_claims_that_race_change_no_slot_of_continuations(
    dsn: str, claimers: int, quotas: dict[str, Quota], script: list[Op]
) -> None:
    await same_with_callers(dsn, quotas, script, nobody, slots=2, claimers=claimers)


@pytest.mark.parametrize("late", [Op("chain", pick=0), Op("offer", head_start=NS)])
async def test_nobody_passes_a_job_that_was_due_before_it_came(dsn: str, late: Op) -> None:
    """It only waits for the worker that claims it, and nobody goes before it meanwhile."""
    async with opened(dsn) as store:
        stored = WithCallers(store, {"a": TWO}, is_caller=lambda number: number == 6)
        await stored.run([Op("offer")] * 6)
        await store.move(START + 510 * MS)
        await (stored.chain(late) if late.kind == "chain" else stored.offer(late))
        assert await granted(stored, 510 * MS) == []
        worker = await store.claim("worker", 1)
        assert worker is not None
        assert [(stored.ids.index(claim.id), claim.slot - START) for claim in worker.claims] == [
            (5, 500 * MS)
        ]
        assert await granted(stored, NS) == [(6, NS)]


@pytest.mark.parametrize(("concurrency", "jobs"), [(None, [0, 1, 2, 3]), (3, [0, 1, 2, 5]), (2, [0, 1, 5])])
async def test_a_continuation_waits_for_those_before_it_that_were_not_loaded(
    dsn: str, concurrency: int | None, jobs: list[int]
) -> None:
    """A claim looks at the first two of four; the others come before it while there is a slot for them."""
    async with opened(dsn) as store:
        quota = Quota(TWO.requests, concurrency=concurrency)
        stored = WithCallers(store, {"a": quota}, slots=1, is_caller=lambda _: True)
        await stored.run([Op("offer", cost=Cost(5)), *[Op("offer", head_start=NS)] * 4])
        await stored.chain(Op("chain", pick=0))
        await store.move(START + 1500 * MS)
        while await store.due() <= store.now:
            await store.claim("worker", 1)
        found = await store.rows("select id from waitline.job where state = 1 order by slot, id")
        assert [stored.ids.index(int(str(job))) for (job,) in found] == jobs
        due = None if concurrency else START + 2 * NS
        assert await store.rows("select due from waitline.tenant") == [(due,)]


async def test_a_continuation_gives_a_worker_no_slot(dsn: str) -> None:
    async with opened(dsn) as store:
        stored = WithCallers(store, {"a": TWO}, slots=1, is_caller=lambda number: number == 0)
        await stored.run([Op("offer")])
        await stored.chain(Op("chain", pick=0))
        await stored.offer(Op("offer"))
        await stored.offer(Op("offer"))
        worker = await store.claim("worker", 1)
        assert worker is not None
        assert [stored.ids.index(claim.id) for claim in worker.claims] == [2]


async def two_runs_behind_a_retry(store: VirtualStore) -> WithCallers:
    """Two runs fill the only worker; a job with an earlier key has come back, and waits for it."""
    stored = WithCallers(store, {"a": TWO}, slots=3, is_caller=nobody)
    await stored.run([Op("offer")] * 3 + [Op("retry", gap=MS, pick=0, delay=MS)])
    await store.move(START + 2 * MS)
    await stored.chain(Op("chain", pick=1, cost=Cost(2)))
    await stored.chain(Op("chain", pick=2, cost=Cost(1)))
    return stored


async def granted(stored: WithCallers, time: int) -> list[tuple[int, int]]:
    """What a process without slots grants at a time: (job, slot)."""
    await stored.store.move(START + time)
    claimed = await stored.claim_callers()
    return [] if claimed is None else [(stored.ids.index(job), slot - START) for job, slot in claimed.callers]


async def test_continuations_pass_a_job_that_nobody_takes_for_a_while(dsn: str) -> None:
    """Otherwise all would wait for one another. A worker with room for the job has the time to take it first.

    The second continuation goes when its permits are there, and not at any time before that is asked for.
    """
    async with opened(dsn) as store:
        stored = await two_runs_behind_a_retry(store)
        assert await granted(stored, 2 * MS) == []
        found = await stored.claim_callers()
        assert found is not None
        assert found.blocked["a"].again == START + 2 * MS + PATIENCE
        assert await granted(stored, 2 * MS + PATIENCE - 1) == []
        assert await granted(stored, 2 * MS + PATIENCE) == [(3, 2 * MS)]
        found = await stored.claim_callers()
        assert found is not None
        assert found.blocked["a"].again == START + 500 * MS
        assert await granted(stored, 500 * MS - 1) == []
        assert await granted(stored, 500 * MS) == [(4, 500 * MS)]
        worker = await store.claim("worker", 1)
        assert worker is None or not worker.claims  # its permits went to those who could use them
        await store.move(START + NS)
        worker = await store.claim("worker", 1)
        assert worker is not None
        assert [(stored.ids.index(claim.id), claim.slot - START) for claim in worker.claims] == [(0, NS)]


async def test_a_worker_with_room_takes_the_job_first(dsn: str) -> None:
    async with opened(dsn) as store:
        stored = await two_runs_behind_a_retry(store)
        assert await granted(stored, 2 * MS) == []
        worker = await store.claim("worker", 1)
        assert worker is not None
        assert [(stored.ids.index(claim.id), claim.slot - START) for claim in worker.claims] == [(0, 2 * MS)]
        assert await granted(stored, 2 * MS) == []
        assert await granted(stored, NS) == [(3, 500 * MS), (4, NS)]
