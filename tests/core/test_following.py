"""A gate follows its upstream: what each answer does to it, and what never happens meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.entry import State
from scheduler.core.policy import Policy, Reason
from scheduler.core.quota import NS, Cost, Quota, Rate
from scheduler.core.signals import Answer, News, Signal, Upstream, What
from tests.core.play import PATIENT, START, Op, Play, engine, signals

ACCEPTED, OVERLOADED, SPENT = (
    Signal(Answer.ACCEPTED),
    Signal(Answer.OVERLOADED),
    Signal(Answer.SPEND_LIMIT),
)


def crowd(gate: Quota | Upstream, jobs: int, tenants: int = 4) -> Play:
    """Jobs of some tenants without limits of their own, behind one gate."""
    play = Play(engine(Quota(), gates={"": gate}))
    for number in range(jobs):
        play.do(Op("offer", tenant="abcdefgh"[number % tenants], policy=PATIENT))
    return play


def running(play: Play) -> list[int]:
    """The numbers of the jobs that run."""
    return [number for number, entry in enumerate(play.jobs) if entry.state is State.RUNNING]


def hear(play: Play, job: int, signal: Signal, gap: int = 0) -> None:
    """Have an answer heard, of the call of a job."""
    play.do(Op("advance", gap=gap))
    play.engine.hear(play.now, play.jobs[job], signal)
    play.listen()


def heard(play: Play, what: What) -> list[News]:
    """What happened at the gates, of one kind."""
    return [news for news in play.engine.news if news.what is what]


# --- a limit was reached ------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 8), st.integers(0, 3 * NS))
def test_after_a_429_nobody_passes_until_then_and_no_crowd_passes_after(
    seconds: int, flight: int, gap: int
) -> None:
    """No grant before `retry_after` has passed; from then on the refill rate, the first one at once."""
    play = crowd(Quota(Rate(5, burst=20)), 60)
    told = running(play)[:flight]
    for job in told:
        hear(play, job, Signal(Answer.RATE_LIMITED, float(seconds)), gap // flight)
        play.engine.retry(play.now, play.jobs[job], play.now, refused=True)
    until = play.now + seconds * NS
    before = len(play.grants)
    play.drain()
    slots = [slot for _, slot in play.grants[before:]]
    assert len(slots) == 60 + flight - before
    assert slots == [until + index * NS // 5 for index in range(len(slots))]


def test_the_refused_job_goes_first_when_the_pause_ends() -> None:
    """It is put back at the front of its line."""
    play = Play(engine(Quota(), gates={"": Quota(Rate(1, burst=1))}))
    for _ in range(3):
        play.do(Op("offer"))
    hear(play, 0, Signal(Answer.RATE_LIMITED, 7.0))
    play.engine.retry(play.now, play.jobs[0], play.now, refused=True)
    play.drain()
    assert play.grants == [(0, START)] + [(job, START + (7 + job) * NS) for job in range(3)]


def test_a_gate_without_rates_lets_fewer_through_at_once() -> None:
    """There is no refill rate to go on at, so slots are taken away."""
    play = crowd(Quota(concurrency=40), 80)
    hear(play, 0, Signal(Answer.RATE_LIMITED, 2.0))
    assert play.engine.gates[""].slots == 35


def test_growth_that_was_too_fast_is_slowed_down_and_comes_back() -> None:
    """A quarter less, once for the calls that were under way; then step by step all of it again."""
    play = crowd(Quota(Rate.per_minute(960, burst=30)), 2000)
    gate = play.engine.gates[""]
    for job in running(play)[:5]:
        hear(play, job, Signal(Answer.RAMP, 1.0), 1)
    assert gate.shape.quota.requests == Rate.per_minute(720, burst=30)
    answers = 0
    while gate.shape.quota != gate.upstream.quota:
        play.do(Op("advance", gap=NS))
        hear(play, running(play)[-1], ACCEPTED)
        answers += 1
    assert 5 * 8 - 1 <= answers <= 5 * 8 + 1


# --- limits that the upstream names -------------------------------------------------------------------------


@pytest.mark.parametrize("true", [500, 2000])
def test_limits_that_are_named_are_followed_both_ways(true: int) -> None:
    """Configured half as high or twice as high: one answer is enough."""
    play = crowd(Quota(Rate.per_minute(1000, burst=10)), 3000)
    hear(play, 0, Signal(Answer.ACCEPTED, None, {"requests": true}, {}))
    before = len(play.grants)
    play.do(Op("advance", gap=0))
    for _ in range(60 * 40):
        play.do(Op("advance", gap=NS // 40))
    assert abs(len(play.grants) - before - true) <= 1
    assert [(n.value, n.dimension) for n in heard(play, What.LIMIT)] == [(true, "requests")]


def test_a_ceiling_is_never_exceeded() -> None:
    """Whatever the upstream names."""
    quota = Quota(Rate.per_minute(1000, burst=10), output_tokens=Rate.per_minute(8000))
    play = crowd(Upstream(quota, ceiling=quota), 10)
    gate = play.engine.gates[""]
    hear(play, 0, Signal(Answer.ACCEPTED, None, {"requests": 50_000, "output_tokens": 4000}))
    assert gate.shape.quota.requests == quota.requests
    assert gate.shape.quota.output_tokens == Rate.per_minute(4000, burst=4000)
    hear(play, 0, Signal(Answer.ACCEPTED, None, {"requests": 600, "output_tokens": 9000}))
    assert gate.shape.quota == Quota(Rate.per_minute(600, burst=10), output_tokens=Rate.per_minute(8000))


def test_a_job_that_a_lowered_limit_can_never_fit_is_refused_at_once() -> None:
    """It would stand before all others for ever."""
    play = Play(engine(Quota(), gates={"": Quota(output_tokens=Rate.per_minute(1000))}))
    for size in (1000, 900, 100):
        play.do(Op("offer", cost=Cost(1, 0, size)))
    hear(play, 0, Signal(Answer.ACCEPTED, None, {"output_tokens": 600}))
    assert [play.jobs[job].reason for job in (1, 2)] == [Reason.NEVER, None]
    play.drain()
    assert play.jobs[2].state is State.ENDED


def test_what_is_left_upstream_only_lowers_a_bucket() -> None:
    """Somebody else uses the account: less is there than the gate believes."""
    play = crowd(Quota(Rate.per_minute(600, burst=600)), 0)
    play.do(Op("offer"))
    gate = play.engine.gates[""]
    hear(play, 0, Signal(Answer.ACCEPTED, None, {}, {"requests": 100}), NS)
    assert gate.levels(play.now)["requests"] == 110  # and what was refilled in that second
    hear(play, 0, Signal(Answer.ACCEPTED, None, {}, {"requests": 500}))
    assert gate.levels(play.now)["requests"] == 110
    assert [n.value for n in heard(play, What.TIGHTENED)] == [110]


@given(st.integers(0, 12))
def test_a_little_less_than_believed_changes_nothing(less: int) -> None:
    """Headers are rounded, and do not know what is on its way."""
    play = crowd(Quota(Rate.per_minute(600, burst=50)), 1)
    before = list(play.engine.gates[""].zeros)
    hear(play, 0, Signal(Answer.ACCEPTED, None, {}, {"requests": 49 - less}))
    assert play.engine.gates[""].zeros == before


# --- short of capacity --------------------------------------------------------------------------------------


def test_one_failure_among_many_takes_a_little_and_an_answer_gives_back() -> None:
    """64 slots: 56 after a failure, and one more with each call that is accepted."""
    play = crowd(Quota(concurrency=64), 200)
    gate = play.engine.gates[""]
    hear(play, 0, OVERLOADED)
    assert gate.slots == 56
    for job in range(1, 5):
        hear(play, job, ACCEPTED)
    assert gate.slots == 60
    for job in range(5, 20):
        hear(play, job, ACCEPTED)
    assert (gate.slots, gate.cut) == (64, 0)


def test_seven_failures_in_a_row_leave_one_slot() -> None:
    """An upstream that accepts nothing is not asked 64 times at once."""
    play = crowd(Quota(concurrency=64), 200)
    seen = []
    for job in range(7):
        hear(play, job, OVERLOADED)
        seen.append(play.engine.gates[""].slots)
    assert seen == [56, 28, 14, 7, 3, 1, 1]


def test_a_gate_without_a_number_of_slots_is_cut_too() -> None:
    """From what the scheduler runs at most, and to no number again."""
    play = Play(engine(Quota(), max_running=16))
    for _ in range(40):
        play.do(Op("offer", policy=PATIENT))
    gate = play.engine.gates[""]
    hear(play, 0, OVERLOADED)
    assert gate.slots == 14
    hear(play, 1, ACCEPTED)
    hear(play, 2, ACCEPTED)
    assert gate.cut == 0


def end(play: Play, jobs: list[int], length: int, signal: Signal | None = None) -> list[int]:
    """End the calls among some that have taken so long; which ones."""
    over = [job for job in jobs if play.now - play.jobs[job].slot >= length]
    for job in over:
        if signal is not None:
            hear(play, job, signal)
        play.engine.settle(play.now, play.jobs[job])
        play.listen()
    return over


@pytest.mark.parametrize("length", [NS // 10, NS // 2, NS])
def test_an_episode_in_which_nothing_is_accepted(length: int) -> None:
    """60 s: no job lost, few calls in it, and doubling from the first that is accepted."""
    play = crowd(Quota(concurrency=64), 400)
    while play.now < START + 5 * length:  # calls of that length, to learn how long they are
        play.do(Op("advance", gap=length // 4))
        for _ in end(play, running(play), length, ACCEPTED):
            play.do(Op("offer", policy=PATIENT))
    begin, calls, accepted = play.now, 0, set(running(play))
    while play.now < begin + 60 * NS:
        accepted.difference_update(end(play, sorted(accepted), length))
        for job in set(running(play)) - accepted:
            calls += 1
            hear(play, job, OVERLOADED)
            play.engine.retry(play.now, play.jobs[job], play.now + NS, refused=True)
            play.listen()
        play.do(Op("advance", gap=NS // 20))
    assert calls <= 2 * 60 * NS // length
    over = play.now
    while play.engine.gates[""].cut:
        end(play, [job for job in running(play) if play.jobs[job].slot >= over], NS // 4, ACCEPTED)
        play.do(Op("advance", gap=NS // 20))
    assert play.now - over <= 5 * NS
    assert all(entry.refusal is None for entry in play.jobs)


# --- a spending limit ---------------------------------------------------------------------------------------


@given(
    st.sampled_from([1, 2, 64]), st.integers(1, 100), st.sampled_from([PATIENT, Policy(), Policy.strict()])
)
def test_nothing_starts_at_a_gate_that_was_closed(slots: int, jobs: int, policy: Policy) -> None:
    """Who waits is refused, and who comes, each with another time; in backoff and behind a session too."""
    play = crowd(Quota(concurrency=slots), jobs)
    play.do(Op("offer", session="s", policy=PATIENT))
    play.do(Op("offer", session="s", policy=PATIENT))
    begun = running(play)
    play.engine.retry(play.now, play.jobs[begun[-1]], play.now + NS, refused=False)
    play.listen()
    hear(play, begun[0], SPENT)
    waiting = [entry for entry in play.jobs if entry.state is State.WAITING]
    assert not waiting
    grants = len(play.grants)
    for job in running(play)[1:]:
        hear(play, job, SPENT)
        play.engine.retry(play.now, play.jobs[job], play.now, refused=True)
    for _ in range(5):
        play.do(Op("offer", policy=policy, gap=NS))
    play.engine.pause(play.now, "", play.now)  # nobody's pause opens it
    play.do(Op("offer", policy=policy))
    assert len(play.grants) == grants
    refused = [entry.refusal for entry in play.jobs if entry.refusal is not None]
    assert {refusal.reason for refusal in refused} == {Reason.SPEND_LIMIT}
    late = [entry.refusal.retry_after for entry in play.jobs[-6:] if entry.refusal is not None]
    assert len({START + n for n in late}) == len(late) == 6


def test_one_call_probes_a_closed_gate_every_hour_until_one_is_accepted() -> None:
    """The first to come after that time; all others are refused meanwhile."""
    play = crowd(Quota(concurrency=8), 1)
    hear(play, 0, SPENT)
    play.do(Op("settle"))
    hour = 3600 * NS
    play.do(Op("offer", gap=hour - 1))
    play.do(Op("offer", gap=1))
    play.do(Op("offer"))
    assert [entry.state is State.RUNNING for entry in play.jobs] == [False, False, True, False]
    hear(play, 2, SPENT)
    play.engine.settle(play.now, play.jobs[2])
    play.do(Op("offer", gap=hour - 1))
    play.do(Op("offer", gap=1))
    assert [entry.state is State.RUNNING for entry in play.jobs[4:]] == [False, True]
    hear(play, 5, ACCEPTED)
    play.do(Op("offer"))
    assert play.jobs[6].state is State.RUNNING
    assert [n.what for n in play.engine.news] == [What.CLOSED, What.OPENED]


def test_a_probe_that_never_asked_leaves_the_next_one_to() -> None:
    """It was cancelled before its call."""
    play = crowd(Quota(concurrency=8), 1)
    hear(play, 0, SPENT)
    play.do(Op("offer", gap=3600 * NS))
    play.engine.withdraw(play.now, play.jobs[1])
    play.do(Op("offer"))
    assert play.jobs[2].state is State.RUNNING


def test_an_operator_opens_a_gate() -> None:
    """Closed or paused."""
    play = crowd(Quota(concurrency=8), 1)
    hear(play, 0, SPENT)
    play.engine.resume(play.now, "")
    play.do(Op("offer"))
    play.engine.pause(play.now, "", play.now + 60 * NS)
    play.do(Op("offer"))
    play.engine.resume(play.now, "")
    assert [entry.state for entry in play.jobs] == [State.RUNNING] * 3


def test_an_answer_to_a_call_from_before_opens_nothing() -> None:
    """It was accepted before the limit was reached."""
    play = crowd(Quota(concurrency=8), 2)
    hear(play, 0, SPENT)
    hear(play, 1, ACCEPTED)
    play.do(Op("offer"))
    assert play.jobs[2].reason is Reason.SPEND_LIMIT


# --- in general ---------------------------------------------------------------------------------------------


@given(st.lists(signals, max_size=30), st.integers(1, 40))
def test_whatever_is_heard_everybody_is_served_or_refused(answers: list[Signal], jobs: int) -> None:
    """Liveness: no answer leaves a gate that nobody passes while it is open."""
    play = crowd(Quota(Rate(20, burst=5), concurrency=6), jobs)
    for number, signal in enumerate(answers):
        alive = running(play)
        if alive:
            hear(play, alive[number % len(alive)], signal, NS // 10)
    play.drain()
    assert play.engine.waiting == 0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Signal("accepted"),  # type: ignore[arg-type]
            "answer: must be a Answer, got 'accepted'",
        ),
        (lambda: Signal(Answer.ACCEPTED, -1.0), "retry_after: must not be negative, got -1.0"),
        (lambda: Signal(Answer.ACCEPTED, None, {"tokens": 5}), "must be one of .* got 'tokens'"),
        (
            lambda: Upstream(Rate(1)),  # type: ignore[arg-type]
            "quota: must be a Quota",
        ),
        (lambda: Upstream(Quota(), spend_probe=0), "spend_probe: must be above 0, got 0"),
        (lambda: Upstream(Quota(Rate(2)), ceiling=Quota(Rate(1))), "ceiling: requests must not be below"),
        (
            lambda: Upstream.of("x", Rate(1)),  # type: ignore[arg-type]
            r"gates\['x'\]: must be a Quota or an Upstream",
        ),
    ],
)
def test_bad_values_are_named(make, text) -> None:  # type: ignore[no-untyped-def]
    """At the edge, with the argument and the value."""
    with pytest.raises((TypeError, ValueError), match=text):
        make()
