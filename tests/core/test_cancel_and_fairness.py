"""Laws 6 and 7: what is cancelled leaves no trace, and tenants share a gate by their weights."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.entry import State
from scheduler.core.fairness import fair_cost
from scheduler.core.policy import Policy
from scheduler.core.quota import NS, Cost, Quota, Rate, Usage
from tests.core.invariants import check
from tests.core.play import START, Op, Play, engine, rates
from tests.core.shares import Shares


def fresh(count: int, rate: Rate, left_out: set[int], at: int) -> list[int]:
    """Slots of a run in which `left_out` were never there after `at`, from the state at that instant."""
    play = Play(engine(Quota(rate)))
    for _ in range(count):
        play.do(Op("offer"))
    play.do(Op("advance", gap=at))
    waiting = [job for job, entry in enumerate(play.jobs) if entry.state is State.WAITING]
    tenant = play.engine.tenants["a"]
    scale, zero = tenant.shape.scales[0], tenant.zeros[0]
    slots = []
    for job in waiting:
        if job not in left_out:
            slots.append(max(play.now, scale.ready(zero, scale.unit)))
            zero += scale.unit
    return slots


@given(rates, st.integers(2, 30), st.sets(st.integers(0, 29)), st.integers(0, 3 * NS))
def test_law_6_survivors_start_as_if_the_others_had_never_been(
    rate: Rate, count: int, cancelled: set[int], at: int
) -> None:
    """After any set of cancellations, the rest is granted exactly as in a run without those."""
    at = min(at, 40_000_000)
    play = Play(engine(Quota(rate)))
    for _ in range(count):
        play.do(Op("offer"))
    play.do(Op("advance", gap=at))
    gone = {job for job in cancelled if job < count and play.jobs[job].state is State.WAITING}
    for job in sorted(gone, reverse=True):
        play.engine.withdraw(play.now, play.jobs[job])
    play.listen()
    survivors = [job for job in range(count) if play.jobs[job].state is State.WAITING]
    already = [job for job, _ in play.grants if job in gone]
    assert not already
    play.drain()
    slots = play.starts()
    begun = [job for job in range(count) if job not in gone and job not in survivors]
    expected = fresh(count, rate, gone, at)
    # Whoever was granted in the instant of a withdrawal is a survivor too.
    waited = [
        job for job in range(count) if job not in gone and slots[job] >= START + at and job not in begun
    ]
    assert [slots[job] for job in waited] == expected[len(expected) - len(waited) :]


@given(rates, st.integers(1, 20), st.data())
def test_law_6_permits_are_conserved(rate: Rate, count: int, data: st.DataObject) -> None:
    """What was granted less what was given back is what the bucket lacks, to the unit, at every step."""
    play = Play(engine(Quota(rate), now=START))
    tenant = None
    for _ in range(count):
        play.do(Op("offer"))
    tenant = play.engine.tenants["a"]
    scale = tenant.shape.scales[0]
    full = scale.full(START)
    for _ in range(count):
        running = [entry for entry in play.jobs if entry.state is State.RUNNING]
        assert tenant.zeros[0] == full + scale.unit * len(running)
        alive = [entry for entry in play.jobs if entry.state in (State.RUNNING, State.WAITING)]
        play.engine.withdraw(play.now, data.draw(st.sampled_from(alive)))
        play.listen()
    assert tenant.zeros[0] == full


def test_law_6_a_grant_that_races_a_cancel_is_given_on() -> None:
    """Granted and cancelled in the same nanosecond: the permit goes to the next one in that instant."""
    play = Play(engine(Quota(Rate(1))))
    for _ in range(3):
        play.do(Op("offer"))
    play.do(Op("advance", gap=NS))
    assert play.jobs[1].state is State.RUNNING
    play.engine.withdraw(play.now, play.jobs[1])
    play.listen()
    assert play.jobs[2].state is State.RUNNING
    assert play.jobs[2].slot == START + NS


@pytest.mark.parametrize(("how", "after"), [("cancelled", 1), ("too late", 0), ("not allowed to wait", 0)])
def test_law_6_a_try_that_was_refused_costs_nothing_if_there_is_no_other(how: str, after: int) -> None:
    """The upstream did no work: its permit is there for the next job once that is certain."""
    play = Play(engine(Quota(Rate(1, per=10))), after=check)
    play.do(Op("offer", policy=Policy(max_wait=20), timeout=3 * NS if how == "too late" else None))
    play.do(Op("offer"))
    again = 60 if how == "not allowed to wait" else 5
    play.engine.retry(play.now, play.jobs[0], play.now + again * NS, refused=True)
    play.listen()
    play.do(Op("advance", gap=NS))
    if how == "cancelled":
        play.engine.withdraw(play.now, play.jobs[0])
        play.listen()
    play.do(Op("advance", gap=2 * NS))
    assert play.starts() == {0: START, 1: START + after * NS}


def test_law_6_a_waiting_job_holds_nothing() -> None:
    """Withdrawing one that waits for a slot leaves every bucket as it was."""
    play = Play(engine(Quota(Rate(1, burst=3), concurrency=1), gates={"": Quota(Rate(5, burst=5))}))
    play.do(Op("offer"))
    tenant, gate = play.engine.tenants["a"], play.engine.gates[""]
    before = copy.copy(tenant.zeros), copy.copy(gate.zeros)
    play.do(Op("offer"))
    play.engine.withdraw(play.now, play.jobs[1])
    assert (tenant.zeros, gate.zeros) == before


shares = st.lists(st.sampled_from([1, 1, 2, 3, 5, 0.5]), min_size=2, max_size=5)


@given(shares, st.lists(st.integers(1, 6), min_size=1, max_size=7), st.integers(1, 80), st.booleans())
def test_law_7_the_bound_of_start_time_fair_queueing(
    weights: list[float], sizes: list[int], rounds: int, slots_only: bool
) -> None:
    """|W_f/w_f − W_g/w_g| ≤ l_f/w_f + l_g/w_g over every interval in which both wait at the gate."""
    names = "abcdefgh"[: len(weights)]
    quotas = {name: Quota(weight=weight) for name, weight in zip(names, weights, strict=True)}
    gate = Quota(concurrency=1) if slots_only else Quota(Rate(10, burst=6))
    play = Play(engine(quotas, gates={"": gate}))
    shape = play.engine.gates[""].shape
    for number in range(rounds):
        for index, name in enumerate(names):
            play.do(Op("offer", tenant=name, cost=Cost(sizes[(number + index) % len(sizes)])))
    found = Shares(dict(zip(names, weights, strict=True)))
    waiting = Counter(e.owner.name for e in play.jobs if e.state is State.WAITING)
    for name in waiting:
        found.waits(name)
    while all(waiting[name] for name in names):
        heard = len(play.told)
        if slots_only:
            play.do(Op("settle", gap=NS))
        else:
            wake = play.engine.wake
            assert wake is not None
            play.do(Op("advance", gap=wake - play.now))
        for told in play.told[heard:]:
            entry = play.jobs[told.job]
            waiting[entry.owner.name] -= 1
            cost = fair_cost(shape, shape.amounts(entry.cost))
            found.served(entry.owner.name, cost, more=waiting[entry.owner.name] > 0)
    found.check(least=0)


def served(play: Play, seconds: int) -> dict[str, int]:
    """Grants by tenant after following the wake-ups for so long."""
    end = play.now + seconds * NS
    while (wake := play.engine.wake) is not None and wake <= end:
        play.do(Op("advance", gap=wake - play.now))
    counts: dict[str, int] = {}
    for job, _ in play.grants:
        name = play.jobs[job].owner.name
        counts[name] = counts.get(name, 0) + 1
    return counts


def test_law_7_weights_one_two_five_share_the_gate() -> None:
    """Eighty grants among three tenants that never run dry: ten, twenty and fifty."""
    quotas = {"a": Quota(weight=1), "b": Quota(weight=2), "c": Quota(weight=5)}
    play = Play(engine(quotas, gates={"": Quota(Rate(8, burst=1))}))
    for _ in range(80):
        for name in "abc":
            play.do(Op("offer", tenant=name))
    assert served(play, 10) == {"a": 11, "b": 20, "c": 50}  # and the one that the full bucket gave at once


def test_law_7_the_gate_never_idles_while_anybody_could_pass() -> None:
    """Liveness: over ten seconds exactly burst + rate·10 pass, whoever they are."""
    play = Play(engine(Quota(), gates={"": Quota(Rate(8, burst=4))}))
    for number in range(200):
        play.do(Op("offer", tenant="abc"[number % 3]))
    assert sum(served(play, 10).values()) == 4 + 80


def test_law_7_a_thousand_sessions_buy_nothing() -> None:
    """One tenant with a thousand sessions and one with a single line are served alike."""
    play = Play(engine(Quota(), gates={"": Quota(Rate(10, burst=1))}))
    for number in range(1000):
        play.do(
            Op("offer", tenant="many", session=f"s{number}", policy=Policy(max_wait=None, max_queue=5000))
        )
    for _ in range(60):
        play.do(Op("offer", tenant="one"))
    counts = served(play, 10)
    assert abs(counts["many"] - counts["one"]) <= 2


def test_law_7_idleness_saves_up_no_credit() -> None:
    """A tenant that comes after twenty seconds shares from then on; it does not catch up."""
    play = Play(engine(Quota(), gates={"": Quota(Rate(10, burst=1))}))
    for _ in range(300):
        for name in ("busy", "other"):
            play.do(Op("offer", tenant=name))
    early = served(play, 20)["busy"]
    for _ in range(100):
        play.do(Op("offer", tenant="late"))
    counts = served(play, 9)
    assert abs(counts["late"] - (counts["busy"] - early)) <= 2


def test_law_7_real_usage_replaces_the_estimate_in_the_account() -> None:
    """Who uses ten times what was estimated is served a tenth as often from then on."""
    tokens = Quota(input_tokens=Rate(1000, burst=1000))
    play = Play(engine(Quota(), gates={"": tokens}))
    for number in range(400):
        play.do(Op("offer", tenant="ab"[number % 2], cost=Cost(1, 100)))
    used = {"a": 0, "b": 0}
    for turn in range(4000):
        if turn == 1:
            used = {"a": 0, "b": 0}  # the first burst met nobody who waited, and so left no debt
        for entry in [e for e in play.jobs if e.state is State.RUNNING]:
            real = 1000 if entry.owner.name == "a" else 100
            used[entry.owner.name] += real
            play.engine.settle(play.now, entry, Usage(1, real, 0))
        play.listen()
        if used["a"] + used["b"] > 30_000:
            break
        wake = play.engine.wake
        assert wake is not None
        play.do(Op("advance", gap=wake - play.now))
    assert abs(used["a"] - used["b"]) <= 2 * 1000 + 1000  # one job of each, and the one in flight


def test_law_7_a_vetoed_job_owes_nothing_however_it_is_given_back() -> None:
    """Settled with a usage of nothing or withdrawn: the debt at a gate without rates is the same, none."""
    debts = []
    for veto in (False, True):
        play = Play(engine(Quota(), gates={"": Quota(concurrency=1)}))
        for name in "aabb":
            play.do(Op("offer", tenant=name))
        play.do(Op("settle"))
        entry = next(entry for entry in play.jobs if entry.state is State.RUNNING)
        assert play.engine.gates[""].fair.finish[entry.owner.name] > 0
        if veto:
            play.engine.settle(play.now, entry, Usage(0, 0, 0))
        else:
            play.engine.withdraw(play.now, entry)
        debts.append(play.engine.gates[""].fair.finish[entry.owner.name])
    assert debts[0] == debts[1]
