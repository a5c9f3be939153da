"""Where gates that follow their upstreams meet jobs with ladders: nobody is lost, stuck or told nonsense."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.engine import Engine
from scheduler.core.entry import Entry, State
from scheduler.core.policy import Policy, Reason, Rung
from scheduler.core.quota import NS, Cost, Quota, Rate, Usage
from scheduler.core.signals import Answer, Signal, Upstream
from tests.core.invariants import check
from tests.core.play import MS, PATIENT, START, Op, Play, engine, ops, quotas

SPENT, ACCEPTED = Signal(Answer.SPEND_LIMIT), Signal(Answer.ACCEPTED)
ONE = Quota(concurrency=1)


def two(x: Quota | Upstream = ONE, y: Quota | Upstream = ONE, quota: Quota = Quota()) -> Play:  # noqa: B008
    """Two gates, x and y; all books are checked after each operation."""
    return Play(engine(quota, gates={"x": x, "y": y}), after=check)


def offer(
    play: Play, gate: str, policy: Policy = PATIENT, tenant: str = "a", cost: Cost | None = None, **more: str
) -> Entry:
    """One more job."""
    play.do(Op("offer", tenant=tenant, gate=gate, policy=policy, cost=cost or Cost(), **more))  # type: ignore[arg-type]
    return play.jobs[-1]


def hear(play: Play, entry: Entry, signal: Signal) -> None:
    """An upstream's answer."""
    play.engine.hear(play.now, entry, signal)
    play.listen()
    check(play)


def settle(play: Play, entry: Entry) -> None:
    """The end of a job."""
    play.engine.settle(play.now, entry)
    play.listen()
    check(play)


# --- a closed gate ----------------------------------------------------------------------------------------


def test_no_job_is_moved_to_a_closed_gate_and_the_gate_can_be_probed() -> None:
    """Also once it may be probed: who waits elsewhere does not come to stand in the way."""
    play = two(y=Upstream(Quota(), spend_probe=5))
    runs, bad = offer(play, "x"), offer(play, "y", tenant="b")
    hear(play, bad, SPENT)
    settle(play, bad)
    waits = offer(play, "x", Policy(max_wait=None, ladder=[Rung(1, gate="y")]))
    play.do(Op("advance", gap=6 * NS))
    assert (waits.state, waits.shared.name) == (State.WAITING, "x")
    probe = offer(play, "y", tenant="b")
    assert probe.state is State.RUNNING
    hear(play, probe, ACCEPTED)
    settle(play, runs)
    assert waits.state is State.RUNNING


def test_a_shorter_answer_is_no_reason_to_wait_at_a_closed_gate() -> None:
    play = two()
    runs = offer(play, "x")
    waits = offer(play, "x", Policy(max_wait=None, ladder=[Rung(0.5, max_tokens=3)]), cost=Cost(1, 0, 9))
    hear(play, runs, SPENT)
    assert waits.reason is Reason.SPEND_LIMIT


@pytest.mark.parametrize("gate", [Quota(Rate(10, burst=10)), ONE, Quota(output_tokens=Rate(5, burst=50))])
def test_everybody_is_told_when_the_gate_may_be_probed_and_no_two_the_same(gate: Quota) -> None:
    """Who waited, of several tenants and of one session, who came back, and who comes later."""
    play = two(x=gate)
    first = offer(play, "x", cost=Cost(1, 0, 50))
    for number in range(12):
        session = {"session": "s"} if number % 3 == 0 else {}
        offer(play, "x", Policy(), tenant="abc"[number % 3], cost=Cost(1, 0, 50), **session)
    back = next(e for e in play.jobs if e.state is State.RUNNING)
    if back is not first:
        play.engine.retry(play.now, back, play.now + NS, refused=False)
        play.listen()
    hear(play, first, SPENT)
    for entry in [e for e in play.jobs if e.state is State.RUNNING]:
        play.engine.retry(play.now, entry, play.now, refused=True)
        play.listen()
    for tenant in "abca":
        offer(play, "x", Policy(), tenant)
        offer(play, "x", Policy.strict(), tenant)
    refusals = [e.refusal for e in play.jobs if e.refusal is not None]
    assert {refusal.reason for refusal in refusals} == {Reason.SPEND_LIMIT}
    waits = [refusal.retry_after for refusal in refusals]
    assert len(set(waits)) == len(waits)
    assert min(waits) >= 3600 * NS
    assert max(waits) <= 3660 * NS
    quote = play.engine.quote(play.now, "new", "x", Entry(PATIENT))
    assert quote.expected == START + 3600 * NS


@pytest.mark.parametrize("end", ["settle", "finish", "withdraw", "retry"])
def test_a_probe_that_ends_without_a_word_leaves_the_next_one_to_ask(end: str) -> None:
    """A broken connection says nothing about spending."""
    play = two(x=Upstream(Quota(), spend_probe=5))
    bad = offer(play, "x")
    hear(play, bad, SPENT)
    settle(play, bad)
    play.do(Op("advance", gap=5 * NS - 1))
    assert offer(play, "x").reason is Reason.SPEND_LIMIT
    play.do(Op("advance", gap=1))
    probe = offer(play, "x")
    if end == "retry":
        assert play.engine.retry(play.now, probe, play.now + NS, refused=False) is not None
    elif end != "finish" or not play.engine.finish(probe):
        getattr(play.engine, "settle" if end == "finish" else end)(play.now, probe)
    play.listen()
    assert offer(play, "x").state is State.RUNNING
    assert offer(play, "x").reason is Reason.SPEND_LIMIT


def test_a_probe_that_is_rate_limited_is_tried_again_when_it_may_be() -> None:
    play = two(x=Upstream(Quota(), spend_probe=50))
    hear(play, offer(play, "x"), SPENT)
    play.do(Op("advance", gap=50 * NS))
    probe = offer(play, "x")
    hear(play, probe, Signal(Answer.RATE_LIMITED, 7.0))
    settle(play, probe)
    play.do(Op("advance", gap=7 * NS - 1))
    assert offer(play, "x").reason is Reason.SPEND_LIMIT
    play.do(Op("advance", gap=1))
    assert offer(play, "x").state is State.RUNNING


def test_who_is_told_a_long_wait_makes_nobody_elses_longer() -> None:
    """Only those who would come back together are told different times."""
    play = two(x=Quota())
    told = []
    for wait in (50, 5, 5, 50):
        entry = offer(play, "x", Policy(max_wait=1))
        refusal = play.engine.retry(play.now, entry, play.now + wait * NS, refused=False)
        assert refusal is not None
        told.append(refusal.retry_after)
    assert told == [50 * NS, 5 * NS, 5 * NS + MS, 50 * NS + MS]


# --- many at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["pause", "close"])
def test_a_thousand_jobs_go_another_way_in_one_operation(what: str) -> None:
    """Without a call for each of them within the last, and without a walk for each of them."""
    play = Play(engine(Quota(), gates={"x": ONE, "y": Quota(concurrency=2)}))
    policy = Policy(max_wait=300, ladder=[Rung(60, gate="y")])
    jobs = [Entry(policy) for _ in range(1001)]
    for entry in jobs:
        assert play.engine.offer(play.now, "a", "x", entry) is None
    if what == "pause":
        play.engine.pause(play.now, "x", play.now + 400 * NS)
    else:
        play.engine.hear(play.now, jobs[0], SPENT)
    places = [entry.shared.name for entry in jobs[1:]]
    assert places.count("y") == 1000
    assert sum(entry.state is State.RUNNING for entry in jobs) == 3
    assert play.engine.waiting == 998


class Counting(Engine):
    """An engine that counts how often a job's prospects are worked out."""

    looks = 0

    def _degrade(self, entry: Entry, now: int) -> bool:
        self.looks += 1
        return super()._degrade(entry, now)


def test_a_job_that_no_rung_helps_is_looked_at_less_and_less_often() -> None:
    """Its own bucket binds: a hundred jobs of a minute and more, and a few looks at each."""
    made = Counting(START, lambda _: Quota(Rate(1)), {"x": Quota(), "y": Quota()}, 1000)
    policy = Policy(max_wait=None, ladder=[Rung(1, gate="y"), Rung(2, gate="y", model="m")])
    for _ in range(100):
        made.offer(START, "a", "x", Entry(policy))
    while made.waiting:
        assert made.wake is not None
        made.advance(made.wake)
    assert 100 <= made.looks <= 100 * 12


# --- permits ----------------------------------------------------------------------------------------------


def test_a_deferred_job_that_comes_back_pays_like_any_other() -> None:
    """It had not been charged, whatever the upstream said."""
    play = two(quota=Quota(Rate(1, burst=1)))
    offer(play, "x")
    entry = offer(play, "x", Policy(max_wait=None, ladder=[Rung(0.5, defer="batch")]))
    assert entry.deferred
    play.engine.retry(play.now, entry, play.now, refused=True)
    play.listen()
    settle(play, play.jobs[0])
    play.do(Op("advance", gap=NS))
    assert entry.state is State.RUNNING
    assert play.engine.tenants["a"].levels(play.now) == {"requests": 0}
    play.engine.withdraw(play.now, entry)
    assert play.engine.tenants["a"].levels(play.now) == {"requests": 1}


def test_no_more_jobs_are_deferred_than_may_be() -> None:
    play = two()
    play.engine.max_deferred = 2
    offer(play, "x")
    policy = Policy(max_wait=None, ladder=[Rung(0, defer="batch")])
    jobs = [offer(play, "x", policy) for _ in range(4)]
    assert [entry.deferred for entry in jobs] == [True, True, False, False]
    settle(play, jobs[0])
    assert offer(play, "x", policy).deferred


def test_a_move_respects_the_length_of_the_line() -> None:
    play = two()
    offer(play, "y")
    for _ in range(5):
        offer(play, "y")
    offer(play, "x")
    policy = Policy(max_wait=None, max_queue=5, ladder=[Rung(0, gate="y")])
    assert [offer(play, "x", policy).shared.name for _ in range(3)] == ["x"] * 3


def test_a_rung_that_makes_a_job_fit_is_taken_before_it_is_refused_for_ever() -> None:
    """At submit, and when a limit is lowered under it."""
    small, large = Quota(output_tokens=Rate(10, burst=100)), Quota(output_tokens=Rate(10, burst=1000))
    play = two(x=small, y=large)
    ladder = Policy(max_wait=None, ladder=[Rung(0, gate="y")])
    assert offer(play, "x", ladder, cost=Cost(1, 0, 500)).shared.name == "y"
    assert offer(play, "x", cost=Cost(1, 0, 500)).reason is Reason.NEVER
    play = two(x=Quota(output_tokens=Rate.per_minute(1000)), y=large)
    first = offer(play, "x", cost=Cost(1, 0, 1000))
    waits, lost = offer(play, "x", ladder, cost=Cost(1, 0, 700)), offer(play, "x", cost=Cost(1, 0, 700))
    back = offer(play, "y", cost=Cost(1, 0, 300), tenant="b")
    play.engine.retry(play.now, back, play.now + NS, refused=False)
    play.listen()
    hear(play, first, Signal(Answer.ACCEPTED, None, {"output_tokens": 600}))
    hear(play, first, Signal(Answer.ACCEPTED, None, {"output_tokens": 200}))
    assert waits.shared.name == "y"
    assert lost.reason is Reason.NEVER


def test_a_job_that_comes_back_to_a_gate_that_it_can_never_pass_any_more_is_refused() -> None:
    play = two(x=Quota(output_tokens=Rate.per_minute(1000)))
    entry = offer(play, "x", cost=Cost(1, 0, 900))
    other = offer(play, "x", cost=Cost(1, 0, 100), tenant="b")
    play.engine.retry(play.now, entry, play.now + 30 * NS, refused=False)
    play.listen()
    hear(play, other, Signal(Answer.ACCEPTED, None, {"output_tokens": 500}))
    assert entry.reason is Reason.NEVER


# --- what the upstream says -------------------------------------------------------------------------------


def test_an_operator_who_opens_a_paused_gate_need_not_wait_for_what_the_pause_emptied() -> None:
    play = two(x=Quota(Rate(10, burst=10), concurrency=8))
    first = offer(play, "x")
    hear(play, first, Signal(Answer.RATE_LIMITED, 60.0))
    hear(play, first, Signal(Answer.OVERLOADED))
    waits = offer(play, "x")
    play.engine.resume(play.now, "x")
    play.listen()
    assert waits.state is State.RUNNING
    assert play.engine.gates["x"].cut == 0
    play.do(Op("advance", gap=NS))
    assert offer(play, "x").state is State.RUNNING


def test_overload_that_names_a_time_is_waited_for_and_nonsense_is_not() -> None:
    play = two(x=Quota(concurrency=8))
    first = offer(play, "x")
    hear(play, first, Signal(Answer.OVERLOADED, 20.0))
    assert play.engine.gates["x"].paused_until == START + 20 * NS
    hear(play, first, Signal(Answer.RATE_LIMITED, 1e300))
    assert play.engine.gates["x"].paused_until == START + 3600 * NS


def test_what_is_cut_is_what_runs() -> None:
    """Twenty of 256: the second failure is felt, and so is that of calls under way."""
    play = Play(engine(Quota(), gates={"x": Quota(concurrency=256)}))
    for _ in range(20):
        play.do(Op("offer", gate="x"))
    play.do(Op("advance", gap=NS))
    hear_all(play, play.jobs[:5])
    assert play.engine.gates["x"].slots == 20 - 3 - 4


def hear_all(play: Play, entries: Sequence[Entry]) -> None:
    """529 for all of them."""
    for entry in entries:
        play.engine.hear(play.now, entry, Signal(Answer.OVERLOADED))


def test_a_hundred_refusals_in_a_millisecond_pause_a_gate_once() -> None:
    """The last of them counts for when it ends; only the first has everybody judged."""
    play = Play(engine(Quota(), gates={"x": Quota(Rate(1000, burst=200))}))
    for _ in range(100):
        play.do(Op("offer", gate="x"))
    for entry in play.jobs:
        play.now += 5_000
        play.engine.hear(play.now, entry, Signal(Answer.RATE_LIMITED, 3.0))
    assert play.engine.gates["x"].paused_until == play.now + 3 * NS
    assert [news.what for news in play.engine.news] == ["paused"]


# --- in general -------------------------------------------------------------------------------------------

KINDS = (
    "offer",
    "offer",
    "chain",
    "settle",
    "withdraw",
    "retry",
    "pause",
    "hear",
    "hear",
    "resume",
    "advance",
)


@given(st.lists(ops(KINDS, gates=("x", "y")), min_size=5, max_size=40), quotas, quotas, quotas)
@settings(max_examples=150)
def test_lateness_changes_nothing_with_ladders_and_answers(
    script: list[Op], quota: Quota, x: Quota, y: Quota
) -> None:
    """Law 13: many small steps of time or one, the same jobs go the same ways at the same slots."""
    told = []
    for steps in (1, 4):
        gates: dict[str, Quota | Upstream] = {"x": x, "y": Upstream(y, spend_probe=2)}
        play = Play(engine(quota, gates), by_number=True)
        for op in script:
            gap = min(op.gap, 49_000_000)
            for _ in range(steps - 1):
                play.do(Op("advance", gap=gap // steps))
            play.do(op._replace(gap=gap - (steps - 1) * (gap // steps)))
        told.append(([t for t in play.told if t.what == "running"], [e.rung for e in play.jobs]))
    assert told[0] == told[1]


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 900), st.integers(0, 900)), max_size=12)
)
def test_whatever_ladders_did_real_usage_is_what_is_left(jobs: list[tuple[str, int, int]]) -> None:
    """Moved, shortened or not: tenants' and gates' buckets lack the sum of the real usages."""
    quota = Quota(output_tokens=Rate(1, burst=100_000))
    gate = Quota(output_tokens=Rate(1, burst=100_000), concurrency=2)
    play = two(x=gate, y=gate, quota=quota)
    policy = Policy(max_wait=None, ladder=[Rung(0, gate="y"), Rung(0.01, max_tokens=50)])
    for tenant, output, _ in jobs:
        offer(play, "x", policy, tenant, Cost(1, 0, output))
    used: dict[str, int] = {}
    where: dict[str, int] = {}
    done: set[int] = set()
    while len(done) < len(jobs):
        number = next(n for n, e in enumerate(play.jobs) if e.state is State.RUNNING)
        entry, (tenant, _, real) = play.jobs[number], jobs[number]
        play.engine.settle(play.now, entry, Usage(1, 0, real))
        play.listen()
        done.add(number)
        used[tenant] = used.get(tenant, 0) + real
        where[entry.shared.name] = where.get(entry.shared.name, 0) + real
    for name, total in used.items():
        if name in play.engine.tenants:
            assert play.engine.tenants[name].levels(play.now)["output_tokens"] == 100_000 - total
    for name, total in where.items():
        assert play.engine.gates[name].levels(play.now)["output_tokens"] == 100_000 - total
