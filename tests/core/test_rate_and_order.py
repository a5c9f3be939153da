"""Laws 1 to 3: the rate, the order, and nothing idle while somebody waits."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.entry import Entry, State
from scheduler.core.policy import Policy
from scheduler.core.quota import NS, Cost, Quota, Rate
from tests.core.invariants import check
from tests.core.play import PATIENT, START, Op, Play, engine, gaps, ops, rates

KINDS = ("offer", "offer", "offer", "advance", "settle", "withdraw")


def charged(play: Play, tenant: str) -> list[tuple[int, int]]:
    """(slot, permits) of a tenant's grants that were not given back."""
    return sorted(
        (entry.slot, entry.cost.requests)
        for entry in play.jobs
        if entry.owner.name == tenant and entry.state is State.RUNNING
    )


def at_most(grants: list[tuple[int, int]], rate: Rate) -> bool:
    """Whether no interval holds more than burst + rate·length; slots are rounded up by less than 1 ns."""
    per_ns = rate.per_second / NS
    least: Fraction | None = None
    total = 0
    for slot, permits in grants:
        before = total - per_ns * slot
        least = before if least is None else min(least, before)
        total += permits
        if total - per_ns * slot - least > (rate.burst or 1) + per_ns:
            return False
    return True


@pytest.mark.parametrize(
    "rate", [Rate(3), Rate(7), Rate.per_minute(1), Rate(2_000_000, per=60), Rate(1, per=3)], ids=repr
)
def test_law_1_no_drift_after_a_million_permits(rate: Rate) -> None:
    """Burst and cost 1, each late wake-up another lateness: the n-th start is at ⌈n / rate⌉, for ever."""
    one = engine(Quota(rate), now=0)
    interval = NS / rate.per_second
    for number in range(3000):
        slot = -(-number * interval.numerator // interval.denominator)
        entry = Entry(PATIENT)
        one.offer(slot, "a", "", entry)
        assert entry.state is State.RUNNING, f"permit {number} is not there at its slot"
        early = Entry(Policy.strict())
        one.offer(slot, "a", "", early)
        assert early.state is State.REFUSED
    # The state is one integer, which a permit moves by its units: a million more are as exact as one.
    tenant = one.tenants["a"]
    scale = tenant.shape.scales[0]
    tenant.zeros[0] += 1_000_000 * scale.unit
    due = 1_003_000 * interval
    assert scale.ready(tenant.zeros[0], scale.unit) == -(-due.numerator // due.denominator)


@given(
    rates,
    st.lists(
        ops(KINDS, tenants=2, policy=PATIENT, session=None, timeout=None, usage=None),
        min_size=6,
        max_size=40,
    ),
)
def test_law_1_no_interval_holds_more_than_burst_and_refill(rate: Rate, script: list[Op]) -> None:
    """In any interval a tenant is charged at most burst + rate·(b − a), however late the wake-ups."""
    script = [op._replace(cost=Cost(min(op.cost.requests, rate.burst or 1))) for op in script]
    play = Play(engine(Quota(rate)))
    for op in script:
        if op.kind in ("settle", "withdraw"):
            continue
        play.do(op)
        for tenant in "ab":
            assert at_most(charged(play, tenant), rate)
    for told in play.told:
        assert told.time <= play.now, "nothing is told before its slot"


@given(rates, st.integers(1, 900_000_000))
def test_law_1_a_full_bucket_grants_its_whole_burst_at_once(rate: Rate, idle: int) -> None:
    """Liveness: a full bucket gives its burst in one instant. Safety: and not one more than that."""
    play = Play(engine(Quota(rate)))
    burst = rate.burst or 1
    play.do(Op("offer"))
    play.do(Op("settle", gap=idle))  # seen before, and not yet forgotten
    full = max(play.now, play.engine.tenants["a"].full_at())
    heard = len(play.grants)
    for number in range(burst + 1):
        play.do(Op("offer", gap=0 if number else full - play.now))
    assert [time for _, time in play.grants[heard:]] == [full] * burst


def test_law_1_a_backlog_is_charged_at_its_slots_not_at_the_late_wake_up() -> None:
    """Wake-ups that are each 40 ms late lose nothing: the tenth start is where it would have been."""
    play = Play(engine(Quota(Rate(20))))
    for _ in range(10):
        play.do(Op("offer"))
    while play.engine.waiting:
        wake = play.engine.wake
        assert wake is not None
        play.do(Op("advance", gap=wake + 40_000_000 - play.now))
    assert [time - START for _, time in play.grants] == [n * 50_000_000 for n in range(10)]


@given(st.lists(ops(KINDS, tenants=3, policy=PATIENT, timeout=None, session=None), min_size=6, max_size=40))
def test_law_2_a_line_goes_by_its_keys(script: list[Op]) -> None:
    """Whoever is granted has the smallest key of its line: large jobs are not overtaken by small ones."""
    play = Play(engine(Quota(Rate(1, burst=3))))
    script = [op._replace(cost=Cost(min(op.cost.requests, 3))) for op in script]
    for op in script:
        before = [entry for entry in play.jobs if entry.state is State.WAITING]
        heard = len(play.told)
        play.do(op)
        for told in play.told[heard:]:
            granted = play.jobs[told.job]
            if told.what == "running" and granted in before:
                behind = [
                    entry for entry in before if entry.owner is granted.owner and entry.key < granted.key
                ]
                assert all(entry.state is not State.WAITING for entry in behind)
        grants = [told.job for told in play.told[heard:] if told.what == "running"]
        for tenant in "abc":
            keys = [
                play.jobs[job].key
                for job in grants
                if play.jobs[job] in before and play.jobs[job].owner.name == tenant
            ]
            assert keys == sorted(keys)


def test_law_2_a_large_job_is_not_starved_by_small_ones() -> None:
    """Five permits wait in front of one: the small job goes after, though its permit is there before."""
    play = Play(engine(Quota(Rate(5, burst=5))))
    for cost in (5, 5, 1, 1):
        play.do(Op("offer", cost=Cost(cost)))
    play.drain()
    assert [job for job, _ in play.grants] == [0, 1, 2, 3]
    assert [(time - START) / NS for _, time in play.grants] == [0, 1, 1.2, 1.4]


def test_law_2_priority_is_a_head_start_and_not_a_class() -> None:
    """Ten seconds of head start beat what came in the last ten seconds, and nobody from before."""
    play = Play(engine(Quota(Rate(1, per=60))))
    play.do(Op("offer"))
    play.do(Op("offer"))
    play.do(Op("offer", gap=8 * NS))
    play.do(Op("offer", gap=4 * NS, head_start=10 * NS))
    play.drain()
    assert [job for job, _ in play.grants] == [0, 1, 3, 2]


@given(
    st.lists(
        ops((*KINDS, "retry", "chain", "pause"), tenants=3, session=None, timeout=None),
        min_size=6,
        max_size=40,
    )
)
def test_law_3_whoever_could_start_has_started(script: list[Op]) -> None:
    """After every operation each front really lacks what it waits for (see `check_front`)."""
    quota = Quota(Rate(3, burst=4), concurrency=2)
    play = Play(engine(quota, gates={"": Quota(Rate(9, burst=5))}, max_running=3), after=check)
    play.run([op._replace(cost=Cost(min(op.cost.requests, 4))) for op in script])
    play.drain()


@given(gaps, st.integers(1, 6))
def test_law_3_a_freed_slot_is_taken_in_that_instant(gap: int, slots: int) -> None:
    """Liveness: with permits to spare, as many run as may, and each end lets the next one go at once."""
    play = Play(engine(Quota(concurrency=slots)))
    for _ in range(12):
        play.do(Op("offer"))
    for done in range(12 - slots):
        assert len(play.grants) == slots + done
        play.do(Op("settle", gap=gap))
        assert play.grants[-1][1] == play.now
