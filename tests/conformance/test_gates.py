"""Shared gates: the store passes tenants in the fair order of the engine, at the same slots."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.policy import Policy, Rung
from scheduler.core.quota import NS, Quota, Rate
from scheduler.core.signals import Answer, Signal, Upstream
from scheduler.stores.postgres.gates import hear
from scheduler.stores.values import Heard
from tests.conformance.record import Record
from tests.conformance.sides import same
from tests.conformance.stored import Stored, opened
from tests.conformance.test_traces import LATE, bounds, few, unbounded
from tests.core.play import MS, Op, ops, quotas, rates, token_rates

FREE = Quota()


def one(quota: Quota) -> dict[str, Upstream]:
    return {"x": Upstream(quota)}


def order(record: Record) -> list[tuple[float, str, int]]:
    """(slot, tenant, job) of all grants."""
    return sorted(
        (slot / NS, tenant, job) for tenant, grants in record.grants.items() for job, slot in grants
    )


async def test_tenants_pass_a_gate_in_turns(dsn: str) -> None:
    script = [Op("offer", gate="x", tenant=tenant) for tenant in "aaaaabb"]
    found = await same(dsn, {"a": FREE, "b": FREE}, script, gates=one(Quota(Rate(1))))
    assert [tenant for _, tenant, _ in order(found)] == ["a", "a", "b", "a", "b", "a", "a"]


async def test_weights_count(dsn: str) -> None:
    script = [Op("offer", gate="x", tenant=tenant) for tenant in "ab" * 12]
    weights = {"a": Quota(weight=3), "b": Quota()}
    found = await same(dsn, weights, script, gates=one(Quota(Rate(1))))
    first = [tenant for _, tenant, _ in order(found)][:13]
    assert first.count("a") == pytest.approx(9, abs=1)


async def test_a_gate_with_slots(dsn: str) -> None:
    script = [Op("offer", gate="x", tenant=tenant) for tenant in "aabb"]
    script += [Op("settle", gap=100 * MS, pick=job) for job in range(4)]
    await same(dsn, {"a": FREE, "b": FREE}, script, gates=one(Quota(concurrency=1)))


async def test_a_line_that_was_changed_keeps_a_gate_busy_until_then(dsn: str) -> None:
    """Nobody else stands there when its quota is set, and what the other one had is not forgotten."""
    script = [Op("offer", gap=MS, gate="x", tenant=tenant) for tenant in "bca"]
    script += [Op("settle", gap=NS, pick=0), Op("set_quota", gap=NS, quota=FREE)]
    script += [Op("offer", gap=MS, gate="x", tenant=tenant) for tenant in "ac"]
    script += [Op("settle", gap=NS, pick=1), Op("settle", gap=NS, pick=2)]
    found = await same(dsn, dict.fromkeys("abc", FREE), script, gates=one(Quota(concurrency=1)))
    assert [job for _, _, job in order(found)] == [0, 1, 2, 3, 4]


async def test_a_promise_counts_the_jobs_that_no_claim_has_loaded(dsn: str) -> None:
    """Of long lines claims load the first jobs only: all of them are work before a newcomer."""
    script = [Op("offer", gate="x", tenant=tenant) for tenant in "a" * 40 + "b" * 20]
    script += [Op("advance", gap=3 * NS)]
    script += [Op("offer", gate="x", tenant=tenant, policy=Policy.strict()) for tenant in "abc"]
    await same(dsn, dict.fromkeys("abc", FREE), script, gates=one(Quota(Rate(1))), slots=1)


async def test_who_still_waits_at_a_closed_gate_is_refused_by_the_next_claim(dsn: str) -> None:
    """Whoever closed it died before all were refused."""
    quotas = dict.fromkeys("abc", FREE)
    async with opened(dsn) as store:
        await store.hearing.declare(one(Quota(concurrency=1)))
        stored = await Stored(store, quotas).run([Op("offer", gate="x", tenant=name) for name in "aaabbc"])
        claim = stored.running[0]
        heard = Heard("x", claim.id, "a", claim.cost, claim.slot, Signal(Answer.SPEND_LIMIT))
        async with store._connections.transaction() as connection:
            assert (await hear(connection, [heard]))[1] == ["x"]
        await stored.pump()
        assert (await stored.record()).ends == dict.fromkeys(range(1, 6), "spend_limit")
        told = await store.rows("select result from waitline.job where state = 3")
        assert len(set(told)) == 5, "each another time"


async def test_who_goes_back_to_a_closed_gate_is_told_a_time_of_its_own(dsn: str) -> None:
    """And whoever is refused after it another one."""
    script = [Op("offer", gate="x"), Op("offer", gate="x"), Op("hear", signal=Signal(Answer.SPEND_LIMIT))]
    script += [Op("retry", gap=MS), Op("retry", gap=MS, pick=1, refused=True), Op("offer", gap=MS, gate="x")]
    found = await same(dsn, {"a": FREE}, script, gates=one(Quota(Rate(1, burst=4))))
    assert found.ends == {0: "spend_limit", 1: "spend_limit"}
    assert found.answers[2] == ("refused", "spend_limit", 3_600 * NS - MS)


gates = st.builds(
    Quota,
    st.one_of(st.none(), rates),
    input_tokens=token_rates,
    concurrency=st.sampled_from([None, None, 1, 2, 5]),
)
shared = st.fixed_dictionaries({"x": gates.map(Upstream)})
both = st.fixed_dictionaries({"x": gates.map(Upstream), "y": gates.map(Upstream)})
three = st.fixed_dictionaries(dict.fromkeys("abc", quotas))

LADDER = (Rung(0.5, gate="y"), Rung(1, max_tokens=3), Rung(1.5, gate="x", model="small"))
ladders = st.sampled_from([Policy(max_wait=None, ladder=LADDER[:most]) for most in (1, 2, 3, 3)])

LOOKED_AT = ("offer", "offer", "offer", "offer", "settle", "withdraw", "set_quota", "advance")
KINDS = ("offer", "offer", "offer", "offer", "settle", "withdraw", "retry", "set_quota", "advance")


def scripts(
    names: str = "x",
    kinds: tuple[str, ...] = KINDS,
    policies: st.SearchStrategy[Policy] = bounds,
    **fixed: st.SearchStrategy[Any],
) -> st.SearchStrategy[list[Op]]:
    drawn = {"policy": policies, "timeout": st.none(), **fixed}
    return st.lists(ops(kinds, tenants=3, gates=names, **drawn), min_size=1, max_size=12)


@few
@given(quotas=three, gates=shared, script=scripts())
async def test_the_store_passes_tenants_as_the_engine_does(
    dsn: str, quotas: dict[str, Quota], gates: dict[str, Upstream], script: list[Op]
) -> None:
    await same(dsn, quotas, script, gates=gates)


@few
@given(quotas=three, gates=both, script=scripts("xy", kinds=(*KINDS, "look")))
async def test_who_waits_at_a_gate_expects_the_same(
    dsn: str, quotas: dict[str, Quota], gates: dict[str, Upstream], script: list[Op]
) -> None:
    looks = [Op("look", pick=job) for job in range(len(script))]
    await same(dsn, quotas, [*script, *looks], gates=gates)


@few
@given(quotas=three, gates=both, script=scripts("xy"))
async def test_tenants_at_two_gates(
    dsn: str, quotas: dict[str, Quota], gates: dict[str, Upstream], script: list[Op]
) -> None:
    await same(dsn, quotas, script, gates=gates)


@few
@given(quotas=three, gates=both, script=scripts("xy"), slots=st.integers(1, 3))
async def test_however_few_jobs_a_claim_takes_they_pass_alike(
    dsn: str, quotas: dict[str, Quota], gates: dict[str, Upstream], script: list[Op], slots: int
) -> None:
    await same(dsn, quotas, script, gates=gates, slots=slots)


@few
@given(quotas=three, gates=both, script=scripts("xy", policies=unbounded), late=st.integers(1, LATE))
async def test_late_claims_change_nothing_at_a_gate(
    dsn: str, quotas: dict[str, Quota], gates: dict[str, Upstream], script: list[Op], late: int
) -> None:
    await same(dsn, quotas, script, gates=gates, late=late)


@few
@given(quotas=three, gates=both, script=scripts("xy"), claimers=st.sampled_from([2, 4, 8]))
async def test_claims_that_race_pass_tenants_alike(
    dsn: str, quotas: dict[str, Quota], gates: dict[str, Upstream], script: list[Op], claimers: int
) -> None:
    await same(dsn, quotas, script, gates=gates, claimers=claimers, slots=2)


@few
@given(quotas=three, gates=both, script=scripts("xy", (*KINDS, "hear", "hear", "hear", "resume")))
async def test_gates_follow_their_upstreams_alike(
    dsn: str, quotas: dict[str, Quota], gates: dict[str, Upstream], script: list[Op]
) -> None:
    await same(dsn, quotas, script, gates=gates)


@settings(few, max_examples=15)
@given(quotas=three, gates=both, script=scripts("xy", LOOKED_AT, policies=ladders, session=st.none()))
async def test_ladders_lead_alike(
    dsn: str, quotas: dict[str, Quota], gates: dict[str, Upstream], script: list[Op]
) -> None:
    """But for jobs that come back to their lines: the store has looked at them every second meanwhile."""
    await same(dsn, quotas, script, gates=gates, long=60 * NS)
