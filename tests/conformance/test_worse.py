"""Waits that get worse after they were promised are judged again, over the store as in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.policy import Policy, Rung
from scheduler.core.quota import NS, Cost, Quota, Rate, Usage
from scheduler.core.signals import Answer, Signal, Upstream
from scheduler.stores.postgres import looking
from tests.conformance.callers import same_with_callers
from tests.conformance.sides import same
from tests.conformance.test_gates import both, one, three
from tests.conformance.test_gates import scripts as gated
from tests.conformance.test_traces import EVERYTHING, bounds, few, pairs, scripts
from tests.core.play import MS, Op

TWO = Quota(Rate(2, burst=5))
BOTH = Quota(Rate(2, burst=5), output_tokens=Rate(2, burst=50))


def waits(*most: float | None) -> list[Op]:
    """Five that go at once, and then one for each bound, in seconds."""
    return [Op("offer")] * 5 + [Op("offer", policy=Policy(max_wait=wait)) for wait in most]


async def test_only_those_are_refused_whose_own_bound_is_passed(dsn: str) -> None:
    """Promised 0.5, 1, … 2.5 s, and a second more: those behind one that is refused move up."""
    script = [*waits(0.5, 2, 1.6, None, 2.5), Op("offer", head_start=NS, cost=Cost(2))]
    found = await same(dsn, {"a": TWO}, script)
    assert found.ends == {5: "max_wait", 7: "max_wait"}
    assert found.grants["a"][5:] == [(10, NS), (6, 1500 * MS), (8, 2 * NS), (9, 2500 * MS)]


async def test_equal_is_accepted(dsn: str) -> None:
    found = await same(dsn, {"a": TWO}, [*waits(1.0, 1.499999999), Op("offer", head_start=NS)])
    assert found.ends == {6: "max_wait"}


async def test_a_lower_quota_refuses_those_who_would_wait_too_long(dsn: str) -> None:
    script = [*waits(0.5, 2, 3, 9), Op("set_quota", quota=Quota(Rate(1, burst=5)))]
    assert (await same(dsn, {"a": TWO}, script)).ends == {5: "max_wait"}


@pytest.mark.parametrize("delay", [0, 100 * MS])
async def test_a_retry_goes_back_in_front(dsn: str, delay: int) -> None:
    script = [*waits(0.5, 1.5), Op("retry", pick=0, delay=delay)]
    assert (await same(dsn, {"a": TWO}, script)).ends == {5: "max_wait"}


async def test_a_wait_counts_from_when_a_try_went_back(dsn: str) -> None:
    """It ran for longer than it may wait."""
    script = [Op("offer", policy=Policy(max_wait=1)), Op("advance", gap=3 * NS), *[Op("offer")] * 5]
    found = await same(dsn, {"a": TWO}, [*script, Op("retry", pick=0)])
    assert found.grants["a"][-1] == (0, 3500 * MS)


async def test_the_bound_of_a_try_that_goes_back_holds_again(dsn: str) -> None:
    """Also where those who wait by then have a longer one."""
    script = [Op("offer", policy=Policy(max_wait=1)), *[Op("offer")] * 4]
    script += [Op("offer", gap=100 * MS, policy=Policy(max_wait=100)), Op("retry", gap=100 * MS, pick=0)]
    found = await same(dsn, {"a": TWO}, [*script, Op("set_quota", quota=Quota(Rate(1, per=2, burst=5)))])
    assert found.ends == {0: "max_wait"}


async def test_more_usage_than_the_estimate(dsn: str) -> None:
    script = [
        *waits(0.5, 1.5),
        Op("settle", pick=0, usage=Usage(1, 0, 0)),
        Op("settle", pick=1, usage=Usage(2)),
    ]
    assert (await same(dsn, {"a": TWO}, script)).ends == {5: "max_wait"}


async def test_more_usage_than_the_estimate_at_the_gate_alone_refuses_nobody_in_vain(dsn: str) -> None:
    script = [Op("offer", gate="x")] * 6 + [Op("settle", pick=0, usage=Usage(1, 0, 9))]
    gates = one(Quota(output_tokens=Rate(2, burst=50)))
    assert (await same(dsn, {"a": TWO}, script, gates=gates)).ends == {}


async def test_with_several_buckets_the_work_in_line_tells_as_well(dsn: str) -> None:
    script = [
        *waits(0.5, 5.5, 6),
        Op("offer", head_start=NS, cost=Cost(1, 0, 60)),
        Op("offer", head_start=NS),
    ]
    assert (await same(dsn, {"a": BOTH}, script)).ends == {5: "max_wait"}


async def test_the_next_of_a_session_comes_in_by_its_key(dsn: str) -> None:
    script = [Op("offer", session="s"), Op("offer", session="s"), *waits(None, 1.0)[1:]]
    script += [Op("settle", gap=100 * MS, pick=0)]
    assert (await same(dsn, {"a": TWO}, script)).ends == {7: "max_wait"}


async def test_whoever_is_refused_lets_the_next_of_its_session_in(dsn: str) -> None:
    """Which makes the wait of those behind it no better than it was."""
    soon = Policy(max_wait=0.5)
    script = [Op("offer")] * 5 + [Op("offer", session="s", policy=soon), Op("offer", session="s")]
    script += [
        Op("offer", policy=Policy(max_wait=1.6)),
        Op("offer", head_start=NS),
        Op("offer", head_start=NS),
    ]
    found = await same(dsn, {"a": TWO}, script)
    assert found.ends == {5: "max_wait", 7: "max_wait"}


async def test_a_continuation_goes_before_those_who_wait(dsn: str) -> None:
    script = [*waits(0.5, 1.5), Op("chain", pick=0)]
    found = await same_with_callers(dsn, {"a": TWO}, script, lambda _: False)
    assert found.ends == {5: "max_wait"}


async def test_a_continuation_that_starts_at_once_makes_others_wait_too(dsn: str) -> None:
    """They stand for a slot of their tenant, and it brings its own."""
    script = [Op("offer")] * 2 + [Op("offer", gap=MS, policy=Policy(max_wait=wait)) for wait in (1, 0.4, 2)]
    script += [Op("chain", pick=0)] * 3
    quota = Quota(Rate(2, burst=5), concurrency=2)
    found = await same_with_callers(dsn, {"a": quota}, script, lambda _: False)
    assert found.ends == {3: "max_wait"}


PAUSE = Signal(Answer.RATE_LIMITED, retry_after=3)


@pytest.mark.parametrize("page", [1, 50])
async def test_a_pause_refuses_those_who_would_wait_beyond_its_end(
    dsn: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all tenants at the gate, however many are looked at together, and nobody elsewhere."""
    monkeypatch.setattr(looking, "TENANTS", page)
    script = [Op("offer", gate="x", tenant=tenant) for tenant in "aaaaabbbbb"]
    for gate in "xy":
        for bound in (2, 4, None):
            script += [Op("offer", gate=gate, tenant=name, policy=Policy(max_wait=bound)) for name in "ab"]
    script += [Op("hear", pick=0, signal=PAUSE)]
    gates = {"x": Upstream(Quota()), "y": Upstream(Quota())}
    found = await same(dsn, {"a": TWO, "b": TWO}, script, gates=gates)
    assert found.ends == {10: "max_wait", 11: "max_wait"}


async def test_a_ladder_is_asked_before_a_job_is_refused(dsn: str) -> None:
    """One goes by the other gate, for one that gate is closed to: those behind are judged after that."""
    ladder = Policy(max_wait=2, ladder=[Rung(1, gate="y")])
    lost = Policy(max_wait=2, ladder=[Rung(1, gate="z")])
    script = [Op("offer", gate="x")] * 5
    script += [Op("offer", gate="x", policy=policy) for policy in (ladder, lost, Policy(max_wait=2))]
    script += [Op("hear", pick=0, signal=PAUSE)]
    gates = {"x": Upstream(Quota()), "y": Upstream(Quota())}
    found = await same(dsn, {"a": TWO}, script, gates=gates)
    assert found.ends == {6: "max_wait", 7: "max_wait"}
    assert found.served[5][0] == "y"


urgent = st.sampled_from([0, 0, NS, 3 * NS, 10 * NS])


@few
@given(pairs, scripts(*EVERYTHING, policy=bounds, head_start=urgent))
async def test_waits_that_get_worse_are_judged_alike(
    dsn: str, quotas: dict[str, Quota], script: list[Op]
) -> None:
    await same(dsn, quotas, script)


AT_GATES = (*EVERYTHING, "offer", "hear", "hear", "resume")


@few
@given(quotas=three, gates=both, script=gated("xy", AT_GATES, policies=bounds, head_start=urgent))
async def test_waits_at_gates_that_get_worse_are_judged_alike(
    dsn: str, quotas: dict[str, Quota], gates: dict[str, Upstream], script: list[Op]
) -> None:
    await same(dsn, quotas, script, gates=gates)


crowded = st.builds(Quota, st.sampled_from([Rate(2, burst=5), Rate(3, burst=1), Rate(7, burst=2)]))
"""Of one bucket: most scripts have somebody wait, and many somebody refused."""


@few
@given(
    st.fixed_dictionaries({"a": crowded}),
    st.lists(
        scripts(
            "offer", "offer", "offer", "retry", "set_quota", policy=bounds, head_start=urgent, quota=crowded
        ),
        min_size=1,
        max_size=2,
    ),
)
async def test_crowded_lines_are_judged_alike(
    dsn: str, quotas: dict[str, Quota], parts: list[list[Op]]
) -> None:
    script = [op._replace(tenant="a", gap=op.gap // 4) for part in parts for op in part]
    await same(dsn, quotas, script)
