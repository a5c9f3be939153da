"""The ladder: which rung a job takes, when, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.entry import Entry, State
from scheduler.core.policy import Policy, Reason, Rung
from scheduler.core.quota import NS, Cost, Quota, Rate
from scheduler.core.signals import Answer, Signal, Upstream, What
from tests.core.play import PATIENT, START, Op, Play, engine

LADDER = (
    Rung(10, model="small"),
    Rung(30, max_tokens=256),
    Rung(60, defer="batch"),
)
POLICY = Policy(max_wait=100, ladder=LADDER)

SLOW = Quota(Rate(1, burst=1))
"""One a second: who is n-th in line for it waits n seconds."""


def two(large: Quota = SLOW, small: Quota = SLOW, quota: Quota = Quota()) -> Play:  # noqa: B008 - frozen values
    """A large model and a small one, with a gate each."""
    return Play(engine(quota, gates={"large": large, "small": small}))


def fill(play: Play, count: int, gate: str = "large", tenant: str = "z") -> None:
    """Let so many jobs without a ladder wait in front: the next one starts after `count` seconds."""
    for _ in range(count):
        play.do(Op("offer", tenant=tenant, gate=gate, policy=PATIENT))


def offer(play: Play, policy: Policy = POLICY, tenant: str = "z", **more: Any) -> Entry:
    """A job with a ladder, behind all others of the tenant."""
    play.do(Op("offer", tenant=tenant, gate="large", policy=policy, **more))
    return play.jobs[-1]


def served(entry: Entry) -> tuple[str, int, str | None, int | None, bool]:
    """How it is served: gate, rungs, model, most tokens, deferred."""
    return entry.shared.name, entry.rung, entry.model, entry.max_tokens, entry.deferred


USUAL = ("large", 0, None, None, False)
SMALL = ("small", 1, "small", None, False)
SHORT = ("small", 2, "small", 256, False)
SHORT_LARGE = ("large", 2, None, 256, False)
BATCH = ("large", 3, None, None, True)


@pytest.mark.parametrize(
    ("large", "small", "output", "expected"),
    [
        # seconds of work at the large gate, at the small one, output tokens of the job
        (0, 0, 0, USUAL),
        (9, 0, 0, USUAL),
        (10, 0, 0, SMALL),
        (40, 0, 0, SMALL),  # as far down as it must, and no further
        (40, 29, 0, SMALL),
        (40, 30, 0, SHORT),
        (40, 30, 1000, SHORT),
        (40, 30, 256, SMALL),  # a shorter answer would change nothing
        (40, 30, 100, SMALL),
        (15, 15, 0, USUAL),  # the small model would not be sooner
        (15, 20, 0, USUAL),
        (35, 50, 0, SHORT_LARGE),  # not sooner, but smaller
        (70, 5, 0, SMALL),
        (70, 65, 0, ("large", 3, "small", 256, True)),
        (70, 75, 0, ("large", 3, None, 256, True)),
    ],
)
def test_the_rung_that_a_new_job_takes(large: int, small: int, output: int, expected: Any) -> None:
    play = two()
    play.do(Op("offer", tenant="z", gate="large"))
    play.do(Op("offer", tenant="z", gate="small"))
    fill(play, large - 1 if large else 0)
    fill(play, small - 1 if small else 0, "small")
    if not large:
        play.do(Op("advance", gap=NS))
    entry = offer(play, cost=Cost(1, 0, output))
    assert served(entry) == expected
    if expected[3] and output:
        assert entry.cost == Cost(1, 0, 256)


def test_a_smaller_answer_is_charged_less() -> None:
    """Where output tokens are what is short, it starts sooner too."""
    gate = Quota(output_tokens=Rate(100, burst=1000))
    play = Play(engine(Quota(), gates={"large": gate}))
    play.do(Op("offer", gate="large", cost=Cost(1, 0, 1000)))
    policy = Policy(ladder=[Rung(5, max_tokens=200)])
    play.do(Op("offer", gate="large", cost=Cost(1, 0, 900), policy=policy))
    assert play.jobs[1].cost == Cost(1, 0, 200)
    play.drain()
    assert play.starts()[1] == START + 2 * NS


def test_the_last_rung_is_a_refusal() -> None:
    """What no rung helps is refused by the bounds of its policy, with a time."""
    play = two()
    fill(play, 131)
    fill(play, 131, "small")
    policy = Policy(max_wait=100, ladder=LADDER[:2])
    entry = offer(play, policy)
    assert entry.reason is Reason.MAX_WAIT
    assert entry.refusal is not None
    assert entry.refusal.retry_after >= 130 * NS


def test_nobody_takes_deferred_jobs() -> None:
    """Then that rung is passed over."""
    play = two()
    play.engine.max_deferred = 0
    fill(play, 71)
    fill(play, 71, "small")
    assert served(offer(play)) == SHORT_LARGE


def test_a_job_that_could_start_has_no_use_for_a_ladder() -> None:
    play = two()
    entry = offer(play, Policy(ladder=[Rung(0, model="small")]))
    assert served(entry) == USUAL
    assert entry.state is State.RUNNING


def test_a_rung_that_lets_it_start_at_once_does() -> None:
    play = two()
    fill(play, 11)
    entry = offer(play)
    assert served(entry) == SMALL
    assert (entry.state, entry.slot) == (State.RUNNING, START)
    assert play.engine.gates["small"].levels(START) == {"requests": 0}


def test_a_job_keeps_its_place_when_it_goes_to_another_gate() -> None:
    """It goes before those of its tenant that came later and stand there already."""
    play = two()
    play.do(Op("offer", tenant="a", gate="small"))
    fill(play, 6, "large", "a")
    patient = Policy(max_wait=None, ladder=[Rung(8, gate="small")])
    first = offer(play, patient, "a")
    play.do(Op("offer", tenant="a", gate="small", policy=PATIENT))
    later = play.jobs[-1]
    play.engine.pause(play.now, "large", play.now + 60 * NS)
    play.engine.pause(play.now, "small", play.now + 20 * NS)
    play.drain()
    assert served(first) == ("small", 1, None, None, False)
    assert play.starts()[play.jobs.index(first)] < play.starts()[play.jobs.index(later)]


def test_it_is_looked_at_again_when_it_has_waited_for_so_long() -> None:
    """Others come in between, by their weight; at ten seconds the small model is sooner."""
    play = Play(engine({"a": Quota(), "vip": Quota(weight=1000)}, gates={"large": SLOW, "small": SLOW}))
    play.do(Op("offer", tenant="vip", gate="large"))
    fill(play, 1, "large", "a")
    entry = offer(play, tenant="a")
    assert served(entry) == USUAL
    fill(play, 50, "large", "vip")
    play.do(Op("advance", gap=10 * NS - 1))
    assert served(entry) == USUAL
    play.do(Op("advance", gap=1))
    assert served(entry) == SMALL
    assert (entry.state, entry.slot) == (State.RUNNING, START + 10 * NS)


def test_a_pause_is_a_reason_to_go_another_way_at_once() -> None:
    play = two()
    fill(play, 3)
    entry = offer(play)
    assert served(entry) == USUAL
    play.do(Op("advance", gap=3 * NS - 1))
    play.engine.pause(play.now, "large", play.now + 20 * NS)
    play.listen()
    assert served(entry) == SMALL
    assert entry.state is State.RUNNING


def test_a_closed_gate_is_a_reason_too_and_refuses_nobody_who_can_go_elsewhere() -> None:
    play = two()
    fill(play, 3)
    entry, plain = offer(play), play.jobs[-1]
    play.do(Op("offer", tenant="b", gate="large", policy=PATIENT))
    plain = play.jobs[-1]
    play.engine.hear(play.now, play.jobs[0], Signal(Answer.SPEND_LIMIT))
    play.listen()
    assert served(entry) == SMALL
    assert plain.reason is Reason.SPEND_LIMIT
    late = offer(play)
    assert served(late) == SMALL
    assert late.state is State.WAITING


def test_a_rung_that_does_not_help_now_may_help_later() -> None:
    """The small gate was paused; it is asked again."""
    play = two()
    play.engine.pause(play.now, "small", play.now + 40 * NS)
    play.engine.pause(play.now, "large", play.now + 25 * NS)
    play.do(Op("offer", tenant="b", gate="large", policy=PATIENT))
    entry = offer(play, Policy(max_wait=None, ladder=[Rung(10, model="small")]))
    assert served(entry) == USUAL
    play.engine.pause(play.now, "small", play.now)
    play.do(Op("advance", gap=10 * NS))
    assert served(entry) == SMALL


def test_who_follows_takes_the_same_rung_for_a_while() -> None:
    """From three quarters of the wait on; below that the usual way again, until all of it is reached."""
    play = two(small=Quota(Rate(1, burst=100)))
    taken = []
    fill(play, 11)
    for wait in (10, 8, 9, 7, 9, 10):
        waiting = [e for e in play.jobs if e.state is State.WAITING]
        for entry in waiting[wait - 1 :]:
            play.engine.withdraw(play.now, entry)
        fill(play, wait - 1 - len(waiting))
        entry = offer(play)
        taken.append(entry.rung)
        if entry.state is State.WAITING:
            play.engine.withdraw(play.now, entry)
    assert taken == [1, 1, 1, 0, 0, 1]


def test_in_the_dark_it_is_only_told() -> None:
    """Every rung once, and the job goes its usual way."""
    play = two()
    fill(play, 41)
    fill(play, 36, "small")
    entry = offer(play, Policy(ladder=LADDER, dark=True))
    assert served(entry)[0] == "large"
    assert served(entry)[2:] == (None, None, False)
    play.drain()
    told = [(news.what, news.tenant, news.rung, news.value) for news in play.engine.news]
    assert told == [(What.WOULD, "z", 1, 36)]
    assert play.starts()[play.jobs.index(entry)] == START + 41 * NS


def test_what_is_told_of_a_step() -> None:
    play = two()
    fill(play, 41)
    offer(play)
    (news,) = play.engine.news
    assert (news.gate, news.what, news.tenant, news.rung, news.value) == ("large", What.RUNG, "z", 0, 41)


def test_a_deferred_job_holds_nothing_and_its_session_waits_for_it() -> None:
    """Neither permits nor slots; withdrawn or settled it gives nothing back."""
    quota = Quota(Rate(1, burst=1), concurrency=1)
    play = two(quota=quota)
    policy = Policy(max_wait=None, ladder=[Rung(2, defer="batch")])
    fill(play, 3)
    levels = play.engine.tenants["z"].levels(play.now)
    entry = offer(play, policy, session="s")
    behind = offer(play, policy, session="s")
    assert entry.deferred
    assert behind.state is State.WAITING
    assert play.engine.tenants["z"].running == play.engine.root.running == 1
    assert play.engine.tenants["z"].levels(play.now) == levels
    play.engine.settle(play.now, entry)
    assert behind.state is State.WAITING
    assert not behind.outside
    play.do(Op("advance", gap=2 * NS))
    assert behind.deferred
    play.engine.withdraw(play.now, behind)
    assert play.engine.tenants["z"].running == 1


def test_a_deferred_job_that_is_retried_is_one_like_any_other() -> None:
    play = two()
    fill(play, 3)
    entry = offer(play, Policy(max_wait=None, ladder=[Rung(2, defer="batch")]))
    for _ in range(5):
        play.do(Op("advance", gap=NS))
    play.engine.retry(play.now, entry, play.now, refused=False)
    play.listen()
    assert entry.state is State.RUNNING
    assert not entry.deferred
    assert play.engine.gates["large"].levels(play.now) == {"requests": 0}


def test_a_try_that_was_refused_keeps_what_its_tenant_paid() -> None:
    """It may go to another gate, and is not given back what it would not be charged now."""
    quota = Quota(output_tokens=Rate(1, burst=5000))
    play = two(quota=quota)
    policy = Policy(max_wait=None, ladder=[Rung(5, gate="small", max_tokens=100)])
    entry = offer(play, policy, "a", cost=Cost(1, 0, 1000))
    play.engine.pause(play.now, "large", play.now + 50 * NS)
    play.engine.retry(play.now, entry, play.now, refused=True)
    play.do(Op("advance", gap=50 * NS))
    play.drain()
    assert entry.cost == Cost(1, 0, 1000)
    assert play.engine.tenants["a"].levels(play.now)["output_tokens"] <= 4000 + (play.now - START) / NS


@given(
    st.lists(st.integers(0, 80), min_size=2, max_size=2),
    st.lists(st.sampled_from([0, 50, 300, 1000]), min_size=1, max_size=12),
    st.sampled_from([LADDER, LADDER[:1], LADDER[1:], (Rung(0, gate="small"), Rung(1, gate="large"))]),
)
def test_no_rung_is_taken_that_makes_a_job_later_and_dearer(
    filled: list[int], outputs: list[int], ladder: tuple[Rung, ...]
) -> None:
    """A job with a ladder starts no later than its twin without one, in the same place of the play."""
    starts = []
    for policy in (Policy(max_wait=None, ladder=ladder), PATIENT):
        play = two()
        fill(play, filled[0])
        fill(play, filled[1], "small", "y")
        last = [offer(play, policy, cost=Cost(1, 0, output)) for output in outputs][-1]
        if policy is not PATIENT and last.rung and not last.deferred:
            assert last.predicted >= ladder[last.rung - 1].after_ns * 3 // 4
        play.drain()
        starts.append(play.starts()[play.jobs.index(last)])
    assert starts[0] <= starts[1]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Rung(-1, model="x"), "after: must not be negative, got -1"),
        (lambda: Rung(1), "rung: must change something, got only after=1"),
        (lambda: Rung(1, model=""), "model: must not be empty, got ''"),
        (lambda: Rung(1, max_tokens=0), "max_tokens: must be at least 1, got 0"),
        (lambda: Rung(1, defer="later"), "defer: must be 'batch' or None, got 'later'"),
        (
            lambda: Policy(ladder=[Rung(5, model="a"), Rung(5, model="b")]),
            "ladder: after must rise, got 5 before 5",
        ),
        (lambda: Policy(ladder=["a"]), "ladder: a rung: must be a Rung, got 'a'"),  # type: ignore[list-item]
    ],
)
def test_bad_values_are_named(make: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        make()


def test_the_gate_of_a_ladder_may_be_one_that_follows_its_upstream() -> None:
    """Cut to nothing, it is no better than the first."""
    play = Play(engine(Quota(), gates={"large": SLOW, "small": Upstream(Quota(concurrency=1))}))
    play.do(Op("offer", tenant="b", gate="small"))
    for _ in range(4):
        play.engine.settle(play.now + 40 * NS, play.jobs[-1])
        play.now += 40 * NS
        play.do(Op("offer", tenant="b", gate="small"))
    fill(play, 13)
    assert served(offer(play)) == USUAL
