"""Overload: a declared order while the oldest job of a line waits too long, and no work begun in vain."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.entry import Entry, State
from scheduler.core.line import BLOCK
from scheduler.core.policy import Cause, Overload, Policy, Reason, Rung
from scheduler.core.quota import NS, Cost, Quota, Rate
from tests.core.play import MS, PATIENT, START, Op, Play, engine, ops, quotas


def late(overload: Overload | None, quota: Quota = Quota(Rate(1))) -> Play:  # noqa: B008 - a frozen value
    """An engine whose tenants may start one job a second."""
    play = Play(engine(quota))
    play.engine.overload = overload
    return play


def offer(play: Play, at: float, **more: Any) -> int:
    """One more job, so many seconds after the start; its number."""
    steps_to(play, at)
    play.do(Op("offer", policy=more.pop("policy", PATIENT), **more))
    return len(play.jobs) - 1


def steps_to(play: Play, at: float) -> None:
    """Let time pass without a stall."""
    end = START + round(at * NS)
    while (wake := play.engine.wake) is not None and wake <= end:
        play.do(Op("advance", gap=wake - play.now))
        for entry in [e for e in play.jobs if e.state is State.RUNNING]:
            play.engine.settle(play.now, entry)
    play.do(Op("advance", gap=end - play.now))


def order(play: Play) -> list[int]:
    """The jobs in the order in which they were granted."""
    steps_to(play, 200)
    return [job for job, _ in play.grants]


def test_first_come_first_served_while_nobody_waits_too_long() -> None:
    play = late(Overload(20, "newest"))
    for number in range(10):
        offer(play, number * 0.1)
    assert order(play) == list(range(10))


@pytest.mark.parametrize("overload", [None, Overload(4, "newest"), Overload(4, "deadline")])
def test_the_newest_or_the_most_urgent_go_first_while_the_oldest_waits_too_long(overload: Any) -> None:
    """Ten jobs at once: in order for four seconds, then by what is declared; all start at their slots.

    It is so from the moment on when the oldest has waited for too long, whoever's turn it was before that.
    """
    play = late(overload)
    for number in range(10):
        offer(play, number * 0.001, timeout=(40 - 2 * number) * NS if number % 2 else None)
    expected = {
        None: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        "newest": [0, 1, 2, 3, 4, 9, 8, 7, 6, 5],
        "deadline": [0, 1, 2, 3, 4, 9, 7, 5, 6, 8],
    }[overload and overload.order]
    assert order(play) == expected
    slots = [slot for _, slot in play.grants]
    assert slots == [START + number * NS for number in range(10)]


def test_a_line_becomes_late_by_time_alone() -> None:
    """The oldest waits for more permits than the newest needs: nobody comes or goes meanwhile."""
    play = late(Overload(1.5, "newest"), Quota(Rate(1, burst=5)))
    for cost in (5, 5, 1):
        offer(play, 0, cost=Cost(cost))
    assert play.starts() == {0: START}
    steps_to(play, 60)
    assert play.starts() == {0: START, 2: START + 1500 * MS + 1, 1: START + 6 * NS}


def test_a_newcomer_goes_first_while_the_line_is_late_and_last_when_it_has_recovered() -> None:
    play = late(Overload(4, "newest"))
    for _ in range(8):
        offer(play, 0)
    first = offer(play, 6.5)
    steps_to(play, 7)
    assert play.grants[-1] == (first, START + 7 * NS)
    steps_to(play, 9)  # the two that are left came in the beginning
    second, third = offer(play, 9.1), offer(play, 9.2)
    assert order(play)[-2:] == [second, third]


def test_who_was_overtaken_is_told_why() -> None:
    play = late(Overload(2, "newest"))
    for _ in range(6):
        offer(play, 0)
    overtaken = play.jobs[3]
    assert overtaken.promised == START + 3 * NS
    steps_to(play, 3.5)
    assert play.engine.delayed_by(overtaken) == {Cause.OVERLOAD_ORDER}
    steps_to(play, 60)
    assert overtaken.slot > overtaken.promised
    assert Cause.OVERLOAD_ORDER in overtaken.delayed


def test_a_line_is_late_no_longer_once_its_oldest_job_goes_another_way() -> None:
    """A rung defers the one job that waits too long: the others go in their order again."""
    play = late(Overload(4, "newest"), Quota(Rate(1, per=7, burst=1)))
    play.engine.max_deferred = 1
    offer(play, 0)
    oldest = offer(play, 1, policy=Policy(max_wait=None, ladder=[Rung(12, defer="batch")]))
    newer, third, fourth = (offer(play, at) for at in (6, 11, 11.5))
    assert order(play) == [0, newer, oldest, third, fourth]
    assert play.starts()[oldest] == START + 13 * NS
    assert play.jobs[oldest].deferred


def test_law_8_of_jobs_that_have_left_a_late_line_nothing_is_kept() -> None:
    """The most urgent job stays, thousands behind it come and go."""
    play = late(Overload(1, "deadline"), Quota(Rate(1, per=10**6)))
    offer(play, 0)
    offer(play, 0)
    offer(play, 0, timeout=10**7 * NS)
    steps_to(play, 2)
    for _ in range(3 * BLOCK):
        play.do(Op("offer", gap=MS, policy=PATIENT))
        play.engine.withdraw(play.now, play.jobs[-1])
    line = play.engine.tenants["a"].lines[""]
    assert line.size == 2
    assert line.urgent is None or len(line.urgent) <= 2 * line.size + BLOCK + 1
    assert line.most_urgent() is play.jobs[2]


def test_runs_under_way_go_before_new_ones() -> None:
    play = late(Overload(2, "newest"))
    run = offer(play, 0)
    for _ in range(6):
        offer(play, 0.0)
    play.engine.advance(play.now)
    end = START + 3 * NS + NS // 2
    while (wake := play.engine.wake) is not None and wake <= end:
        play.do(Op("advance", gap=wake - play.now))
    call = Entry(PATIENT, holder=play.jobs[run])
    play.add(play.now, call, "a", "")
    offer(play, (play.now - START) / NS)
    play.do(Op("advance", gap=START + 4 * NS - play.now))
    assert call.state is State.RUNNING


@pytest.mark.parametrize("declared", [True, False])
def test_a_job_that_could_not_end_in_time_is_not_begun(declared: bool) -> None:
    """Jobs take three seconds: with less than that left, its permit goes to the next one."""
    play = late(Overload(1000) if declared else None, Quota(Rate(1, burst=1)))
    play.engine.gates[""].hold = 3 * NS
    offer(play, 0)
    in_vain = offer(play, 0.5, timeout=4_900 * MS)
    play.engine.set_quota(play.now, "a", Quota(Rate(1, per=4)))
    patient = offer(play, 0.6)
    play.do(Op("advance", gap=START + 4 * NS - play.now))
    assert (play.jobs[in_vain].reason is Reason.DEADLINE) == declared
    assert (play.jobs[patient].state is State.RUNNING) == declared
    refused = play.jobs[in_vain].refusal
    assert refused is None or refused.retry_after > 0


def test_at_submit_the_deadline_is_held_against_the_end() -> None:
    play = late(Overload(1000))
    play.engine.gates[""].hold = 3 * NS
    for _ in range(3):
        offer(play, 0)
    assert play.jobs[offer(play, 0, timeout=5 * NS)].reason is Reason.DEADLINE
    assert play.jobs[offer(play, 0, timeout=7 * NS)].state is State.WAITING


KINDS = ("offer", "offer", "chain", "settle", "withdraw", "retry", "pause", "hear", "set_quota", "advance")


@given(st.lists(ops(KINDS), min_size=5, max_size=40), quotas, st.sampled_from(["newest", "deadline"]))
def test_in_whatever_order_everybody_is_served_or_refused(script: list[Op], quota: Quota, order: str) -> None:
    """Liveness, and the books of slots and permits, with an order for overload that is soon reached."""
    play = late(Overload(0.05, order), quota).run(script).drain()
    assert play.engine.waiting == 0
    assert play.engine.root.running == 0


@given(st.lists(ops(KINDS), min_size=5, max_size=40), quotas, st.sampled_from(["newest", "deadline"]))
def test_lateness_changes_no_order(script: list[Op], quota: Quota, order: str) -> None:
    """Law 13, with small gaps: one step or many."""
    told = []
    for steps in (1, 5):
        play = late(Overload(0.05, order), quota)
        play.by_number = True
        for op in script:
            gap = min(op.gap, 49 * MS)
            for _ in range(steps - 1):
                play.do(Op("advance", gap=gap // steps))
            play.do(op._replace(gap=gap - (steps - 1) * (gap // steps)))
        told.append([t for t in play.told if t.what == "running"])
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Overload(-1), "target: must not be negative, got -1"),
        (lambda: Overload(1, "oldest"), "order: must be 'deadline' or 'newest', got 'oldest'"),
    ],
)
def test_bad_values_are_named(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_who_is_overtaken_for_longer_than_it_may_wait_is_refused() -> None:
    """Law 8: no wait without a bound, however many come later."""
    play = late(Overload(1, "newest"))
    for _ in range(6):
        offer(play, 0, policy=Policy(max_wait=10))
    for second in range(1, 40):
        offer(play, second - 0.5)
    steps_to(play, 200)
    assert [entry.reason for entry in play.jobs[:6]] == [None, None, *[Reason.MAX_WAIT] * 4]
    assert {entry.state for entry in play.jobs[6:]} == {State.ENDED}
    assert all(play.jobs[job].refusal.retry_after > 0 for job in (2, 3, 4, 5))  # type: ignore[union-attr]
