"""Lines that are late: over the store they go by the declared order, as in memory, at the same slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.policy import Overload, Policy
from scheduler.core.quota import NS, Cost, Quota, Rate
from scheduler.core.signals import Upstream
from tests.conformance.callers import same_with_callers
from tests.conformance.processes import Claimer
from tests.conformance.sides import same
from tests.conformance.stored import Stored, opened
from tests.conformance.test_gates import both, shared, three
from tests.conformance.test_gates import scripts as scripts_at_gates
from tests.conformance.test_traces import LATE, few, pairs, scripts
from tests.core.play import MS, START, Op

fewer = settings(few, max_examples=12)

ONE = Quota(Rate(1))
TWO = Quota(Rate(2, burst=5))
NEWEST, DEADLINE = Overload(4, "newest"), Overload(4, "deadline")

overloads = st.builds(
    Overload, st.sampled_from([0.0, 0.3, 1.0, 3.0]), st.sampled_from(["newest", "deadline"])
)

KINDS = ("offer", "offer", "offer", "offer", "settle", "withdraw", "retry", "set_quota", "advance")
PLAIN = ("offer", "offer", "offer", "offer", "settle", "withdraw", "advance")

impatient = st.sampled_from([Policy(max_wait=wait) for wait in (1.0, 2.0, 5.0)])

timeouts = st.one_of(st.none(), st.integers(10, 80).map(lambda n: n * 100 * MS))
"""See `test_traces.timeouts`; jobs have to end by then."""


def at_gates(names: str = "xy", **fixed: Any) -> st.SearchStrategy[list[Op]]:
    return scripts_at_gates(names, KINDS, timeout=timeouts, **fixed)


def jobs(record: Any) -> list[int]:
    return [job for job, _ in record.grants["a"]]


@pytest.mark.parametrize("gate", ["", "x"])
@pytest.mark.parametrize("slots", [1, 100])
@pytest.mark.parametrize("overload", [NEWEST, DEADLINE])
async def test_the_newest_or_the_most_urgent_go_first_while_the_oldest_waits_too_long(
    dsn: str, overload: Overload, slots: int, gate: str
) -> None:
    """Of a line that is longer than what a claim loads of it."""
    offers = [
        Op("offer", gap=MS, gate=gate, timeout=(400 - 2 * number) * NS if number % 2 else None)
        for number in range(90)
    ]
    gates = {"x": Upstream(Quota(concurrency=100))} if gate else None
    found = await same(dsn, {"a": ONE}, offers, slots=slots, overload=overload, gates=gates)
    first = {"newest": [89, 88, 87], "deadline": [89, 87, 85]}[overload.order]
    assert jobs(found)[:8] == [0, 1, 2, 3, 4, *first]
    assert [slot for _, slot in found.grants["a"]] == [MS + number * NS for number in range(90)]


async def test_a_line_that_has_recovered_goes_as_its_jobs_came(dsn: str) -> None:
    script = [Op("offer")] * 8 + [Op("offer", gap=6500 * MS), Op("offer", gap=2600 * MS), Op("offer", gap=MS)]
    found = await same(dsn, {"a": ONE}, script, overload=NEWEST)
    assert jobs(found)[-2:] == [9, 10]


async def test_a_line_becomes_late_by_time_alone(dsn: str) -> None:
    """The oldest waits for more permits than the newest needs: nobody comes or goes meanwhile."""
    script = [Op("offer", cost=Cost(5)), Op("offer", cost=Cost(5)), Op("offer")]
    found = await same(dsn, {"a": Quota(Rate(1, burst=5))}, script, overload=Overload(1.5, "newest"))
    assert found.grants["a"] == [(0, 0), (2, 1500 * MS + 1), (1, 6 * NS)]


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("order", ["newest", "deadline"])
async def test_a_claim_goes_no_further_than_the_best_jobs_that_it_knows(
    dsn: str, order: str, short: bool
) -> None:
    """Late claims, and a tenant that has most of the gate: more of its jobs pass than a claim has loaded."""
    script = [Op("offer", gate="x", tenant=tenant) for tenant in "bcde" * 3]
    script += [
        Op("offer", gate="x", timeout=(1000 - number * 7 % 50) * NS if number % 3 else None)
        for number in range(60)
    ]
    quotas = {**dict.fromkeys("bcde", Quota()), "a": Quota(weight=100)}
    gates = {"x": Upstream(Quota(Rate(1000)))}
    overload = Overload(0, order)
    found = await same(dsn, quotas, script, gates=gates, overload=overload, late=LATE, short=short)
    assert len(found.grants["a"]) == 60


@pytest.mark.parametrize(("gate", "first"), [("", 10), ("x", 9)])
async def test_more_newcomers_than_a_claim_loads_move_a_slot(dsn: str, gate: str, first: int) -> None:
    """To when the first of those came that it has loaded: who was the newest before that it cannot know."""
    async with opened(dsn, short=True) as store:
        gates = {"x": Upstream(Quota(concurrency=50))} if gate else {}
        await store.hearing.declare(gates, Overload(0, "newest"))
        stored = await Stored(store, {"a": ONE}, slots=1).run([Op("offer", gate=gate)] * 3)
        for number in range(3, 13):
            await store.move(START + NS + number * 2 * MS)
            await stored.offer(Op("offer", gate=gate))
        await stored.pump()
        assert stored.kept.grants["a"] == [(0, 0), (first, NS + first * 2 * MS)]
        await stored.run([Op("advance", gap=20 * NS)])
        assert jobs(stored.kept)[2:] == [number for number in range(12, 0, -1) if number != first]


async def test_who_is_overtaken_for_longer_than_it_may_wait_is_refused(dsn: str) -> None:
    """However many of them there are; and whoever came later goes on."""
    script = [Op("offer", policy=Policy(max_wait=100)) for _ in range(60)]
    script += [Op("offer", gap=NS) for _ in range(160)]
    for slots in (1, 100):
        found = await same(dsn, {"a": ONE}, script, overload=Overload(1, "newest"), slots=slots)
        assert found.ends == dict.fromkeys(range(2, 60), "max_wait")


@pytest.mark.parametrize("gate", ["", "x"])
async def test_a_job_that_could_not_end_in_time_is_refused_at_its_turn(dsn: str, gate: str) -> None:
    """That is 20 ms before its deadline, and jobs take 50: its permit goes to the next one."""
    script = [Op("offer", gate=gate), Op("offer", gap=500 * MS, gate=gate, timeout=2020 * MS)]
    script += [Op("set_quota", quota=Quota(Rate(1, per=4))), Op("offer", gap=100 * MS, gate=gate)]
    gates = {"x": Upstream(Quota(concurrency=5))} if gate else None
    first, second = 2500 * MS, 6500 * MS
    for overload, expected in ((None, [(0, 0), (1, first), (2, second)]), (NEWEST, [(0, 0), (2, first)])):
        found = await same(dsn, {"a": Quota(Rate(1, burst=1))}, script, gates=gates, overload=overload)
        assert found.grants["a"] == expected


@fewer
@given(pairs, scripts(*KINDS, timeout=timeouts), overloads)
async def test_late_lines_go_as_in_memory(
    dsn: str, quotas: dict[str, Quota], script: list[Op], overload: Overload
) -> None:
    await same(dsn, quotas, script, overload=overload)


@fewer
@given(pairs, scripts(*KINDS, timeout=timeouts), overloads, st.integers(1, 3))
async def test_however_few_jobs_a_claim_takes_late_lines_go_alike(
    dsn: str, quotas: dict[str, Quota], script: list[Op], overload: Overload, slots: int
) -> None:
    await same(dsn, quotas, script, overload=overload, slots=slots, short=True)


@fewer
@given(pairs, scripts(*KINDS, timeout=timeouts), overloads, st.integers(1, LATE))
async def test_late_claims_change_no_slot_in_late_lines(
    dsn: str, quotas: dict[str, Quota], script: list[Op], overload: Overload, late: int
) -> None:
    await same(dsn, quotas, script, overload=overload, late=late)


@fewer
@given(pairs, scripts(*KINDS, timeout=timeouts), overloads, st.sampled_from([2, 4, 8]))
async def test_claims_that_race_change_no_slot_in_late_lines(
    dsn: str, quotas: dict[str, Quota], script: list[Op], overload: Overload, claimers: int
) -> None:
    await same(dsn, quotas, script, overload=overload, claimers=claimers, slots=2, short=True, ties=True)


@pytest.fixture
def processes(dsn: str) -> Iterator[list[Claimer]]:
    """Two workers of the database, each a process of its own that is told nothing of what was declared."""
    claimers = [Claimer(dsn) for _ in range(2)]
    yield claimers
    for claimer in claimers:
        claimer.close()


@settings(few, max_examples=10)
@given(quotas=three, gates=st.one_of(st.none(), shared), script=at_gates("x"), overload=overloads)
async def test_worker_processes_go_by_what_was_declared(
    dsn: str,
    processes: list[Claimer],
    quotas: dict[str, Quota],
    gates: dict[str, Upstream] | None,
    script: list[Op],
    overload: Overload,
) -> None:
    if gates is None:
        script = [op._replace(gate="") for op in script]
    await same(dsn, quotas, script, gates=gates, overload=overload, processes=processes, slots=2, ties=True)


@fewer
@given(
    pairs,
    scripts(*PLAIN, timeout=timeouts, policy=impatient, head_start=0, session=None, usage=None),
    overloads,
)
async def test_nobody_is_overtaken_for_longer_than_in_memory(
    dsn: str, quotas: dict[str, Quota], script: list[Op], overload: Overload
) -> None:
    await same(dsn, quotas, script, overload=overload)


@fewer
@given(
    pairs,
    scripts("offer", "offer", "chain", "chain", "settle", "withdraw", "advance", session=None),
    overloads,
    st.booleans(),
)
async def test_callers_and_later_messages_of_runs_go_as_in_memory(
    dsn: str, quotas: dict[str, Quota], script: list[Op], overload: Overload, callers: bool
) -> None:
    """Messages of a run that has begun go before all others of a line that is late."""

    def is_caller(number: int) -> bool:
        return callers and number % 2 == 1

    await same_with_callers(dsn, quotas, script, is_caller, overload=overload)


@fewer
@given(quotas=three, gates=shared, script=at_gates("x"), overload=overloads)
async def test_late_lines_pass_a_gate_as_in_memory(
    dsn: str, quotas: dict[str, Quota], gates: dict[str, Upstream], script: list[Op], overload: Overload
) -> None:
    await same(dsn, quotas, script, gates=gates, overload=overload)


@fewer
@given(quotas=three, gates=both, script=at_gates(), overload=overloads, slots=st.integers(1, 3))
async def test_however_few_jobs_a_claim_takes_late_lines_pass_alike(
    dsn: str,
    quotas: dict[str, Quota],
    gates: dict[str, Upstream],
    script: list[Op],
    overload: Overload,
    slots: int,
) -> None:
    await same(dsn, quotas, script, gates=gates, overload=overload, slots=slots, short=True)


@fewer
@given(quotas=three, gates=both, script=at_gates(), overload=overloads, late=st.integers(1, LATE))
async def test_late_claims_change_nothing_of_late_lines_at_a_gate(
    dsn: str,
    quotas: dict[str, Quota],
    gates: dict[str, Upstream],
    script: list[Op],
    overload: Overload,
    late: int,
) -> None:
    await same(dsn, quotas, script, gates=gates, overload=overload, late=late)


@fewer
@given(quotas=three, gates=both, script=at_gates(), overload=overloads, claimers=st.sampled_from([2, 4]))
async def test_claims_that_race_pass_late_lines_alike(
    dsn: str,
    quotas: dict[str, Quota],
    gates: dict[str, Upstream],
    script: list[Op],
    overload: Overload,
    claimers: int,
) -> None:
    await same(dsn, quotas, script, gates=gates, overload=overload, claimers=claimers, slots=2, ties=True)
