"""Laws 4 and 5: the promise is kept to the nanosecond, and a refusal says when that would have been."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.entry import RUNNING, WAITING, Entry, State
from scheduler.core.policy import Cause, Policy, Reason, Refusal
from scheduler.core.quota import NS, Cost, Quota, Rate
from tests.core.play import PATIENT, START, Op, Play, costs, engine, gaps, ops, rates, token_rates

PLAIN: dict[str, Any] = {"policy": PATIENT, "session": None, "timeout": None, "head_start": 0}


def punctually(play: Play, op: Op) -> None:
    """Play an operation after following every wake-up before it: no stall, which would be a named cause."""
    end = play.now + op.gap
    while (wake := play.engine.wake) is not None and wake < end:
        play.do(Op("advance", gap=wake - play.now))
    play.do(op._replace(gap=end - play.now))


def test_law_5_the_example_everyone_knows() -> None:
    """Rate 2, burst 5, eight at one instant: five start, and three are told 0.5, 1.0 and 1.5 s."""
    play = Play(engine(Quota(Rate(2, burst=5))))
    for _ in range(8):
        play.do(Op("offer", policy=Policy.strict()))
    refused = [told.time for told in play.told if told.what == "strict"]
    assert len(play.grants) == 5
    assert refused == [NS // 2, NS, 3 * NS // 2]


def test_law_4_the_example_everyone_knows() -> None:
    """Queued, the same eight start at 0, 0, 0, 0, 0, 0.5, 1.0 and 1.5 s, as was promised."""
    play = Play(engine(Quota(Rate(2, burst=5))))
    for _ in range(8):
        play.do(Op("offer"))
    promised = [entry.promised for entry in play.jobs]
    play.drain()
    assert [time - START for _, time in play.grants] == [0, 0, 0, 0, 0, NS // 2, NS, 3 * NS // 2]
    assert promised == [time for _, time in play.grants]


@given(
    st.builds(Quota, rates, input_tokens=token_rates, output_tokens=token_rates),
    st.lists(
        ops(("offer", "offer", "advance"), tenants=2, cost=costs, usage=None, **PLAIN),
        min_size=10,
        max_size=30,
    ),
)
def test_law_4_without_a_named_cause_the_error_is_nothing(quota: Quota, script: list[Op]) -> None:
    """One bucket or three, whatever the costs: each job starts in the very nanosecond it was promised."""
    play = Play(engine(quota))
    for op in script:
        punctually(play, op)
    play.drain()
    for entry in play.jobs:
        if entry.state is State.ENDED:
            assert entry.slot == entry.promised
            assert not entry.delayed


@given(
    rates,
    st.lists(
        ops(("offer", "offer", "offer", "withdraw", "advance"), tenants=1, **PLAIN), min_size=6, max_size=40
    ),
)
def test_law_4_work_that_leaves_only_makes_it_shorter(rate: Rate, script: list[Op]) -> None:
    """After cancellations nobody starts later than promised, and nobody is said to be delayed."""
    play = Play(engine(Quota(rate)))
    for op in script:
        play.do(op._replace(cost=Cost(), gap=min(op.gap, 40_000_000)))
    play.drain()
    for job, slot in play.grants:
        assert slot <= play.jobs[job].promised
        assert not play.jobs[job].delayed


@given(
    st.lists(
        ops(
            ("offer", "offer", "chain", "settle", "withdraw", "retry", "pause", "set_quota", "advance"),
            tenants=2,
            timeout=None,
            policy=PATIENT,
        ),
        min_size=6,
        max_size=40,
    )
)
def test_law_4_whoever_starts_late_has_a_named_cause(script: list[Op]) -> None:
    """Priorities, sessions, retries, pauses, gates, slots, limits, stalls: lateness is never silent."""
    quota = Quota(Rate(3, burst=2), concurrency=2)
    play = Play(engine(quota, gates={"": Quota(Rate(8, burst=4), concurrency=3)}))
    play.run([op._replace(cost=Cost()) for op in script])
    play.drain()
    for job, slot in play.grants:
        entry = play.jobs[job]
        if slot == entry.slot and slot > entry.promised:
            assert entry.delayed, f"job {job} is {slot - entry.promised} ns late and nothing says why"


def test_law_4_a_slot_that_is_waited_for_is_named() -> None:
    """Permits are there, and the only slot is not: the start is later than promised, and it says why."""
    play = Play(engine(Quota(Rate(1, burst=5), concurrency=1)))
    play.do(Op("offer"))
    play.do(Op("offer"))
    play.do(Op("settle", gap=3 * NS))
    late = play.jobs[1]
    assert (late.promised, late.slot) == (START, START + 3 * NS)
    assert late.delayed == {Cause.SLOT}


def test_law_4_the_promise_counts_who_is_still_there() -> None:
    """Of ten in line three leave from the middle: the next quote is for the seven that are left."""
    play = Play(engine(Quota(Rate(1))))
    for _ in range(11):
        play.do(Op("offer"))
    for job in (3, 5, 7):
        play.engine.withdraw(play.now, play.jobs[job])
    assert play.engine.quote(play.now, "a", "", Entry(PATIENT)).promised == START + 8 * NS


def test_law_4_the_promise_counts_nobody_who_went() -> None:
    """Of six three have gone from the line: the next one is promised its place behind the last two."""
    play = Play(engine(Quota(Rate(1))))
    for _ in range(6):
        play.do(Op("offer"))
    for _ in range(3):
        play.do(Op("advance", gap=NS))
    assert [entry.state for entry in play.jobs] == [RUNNING] * 4 + [WAITING] * 2
    play.do(Op("offer"))
    assert play.jobs[6].promised == START + 6 * NS


def both_manners(rate: Rate, gaps_between: list[int]) -> tuple[list[int], list[int]]:
    """Waits of the same arrivals, once refused and once queued, from equal states; 0 for who starts."""
    waits: list[list[int]] = []
    for policy in (Policy.strict(), PATIENT):
        one, now, told = engine(Quota(rate)), START, []
        for gap in gaps_between:
            now += gap
            entry = Entry(policy)
            refusal = one.offer(now, "a", "", entry)
            told.append(entry.promised - now if refusal is None else refusal.retry_after)
        waits.append(told)
    return waits[0], waits[1]


@given(rates, st.integers(1, 60))
def test_law_5_a_refusal_says_what_the_queue_would_have_promised(rate: Rate, count: int) -> None:
    """The same burst in both manners: the same times, to the nanosecond; all refusals differ; none is 0."""
    strict, queued = both_manners(rate, [0] * count)
    assert strict == queued
    refused = [wait for wait in strict if wait]
    assert len(set(refused)) == len(refused)
    assert all(wait > 0 for wait in refused)


@given(rates, st.lists(gaps, min_size=6, max_size=40))
def test_law_5_callers_refused_one_after_another_get_different_times(rate: Rate, between: list[int]) -> None:
    """Over any arrivals no two refused callers are sent to the same nanosecond, and never to the past."""
    one, now, told = engine(Quota(rate)), START, []
    for gap in between:
        now += gap
        refusal = one.offer(now, "a", "", Entry(Policy.strict()))
        if refusal is not None:
            assert refusal.retry_after > 0
            assert refusal.reason is Reason.STRICT
            told.append(now + refusal.retry_after)
    assert len(set(told)) == len(told)


def test_law_5_never_is_another_answer_than_not_yet() -> None:
    """A cost above the burst can never fit: another reason, and no time to come back at."""
    one = engine(Quota(Rate(2, burst=5), input_tokens=Rate(10, burst=100)))
    refusal = one.offer(START, "a", "", Entry(PATIENT, Cost(6)))
    assert refusal == Refusal(Reason.NEVER, 0, ("requests", 6, 5))
    refusal = one.offer(START, "a", "", Entry(PATIENT, Cost(1, 101)))
    assert refusal == Refusal(Reason.NEVER, 0, ("input_tokens", 101, 100))


@given(rates, st.integers(0, 5), st.integers(0, 3 * NS))
def test_law_5_a_wait_that_cannot_fit_is_refused_at_once_and_an_equal_one_is_not(
    rate: Rate, ahead: int, bound: int
) -> None:
    """`max_wait` equal to the promise is accepted, a nanosecond less is refused with that very time."""
    one = engine(Quota(rate))
    for _ in range((rate.burst or 1) + ahead):
        one.offer(START, "a", "", Entry(PATIENT))
    wait = one.quote(START, "a", "", Entry(PATIENT)).promised - START
    assert wait > 0
    exact = Policy(max_wait=wait / NS)
    if exact.max_wait_ns == wait:
        assert one.offer(START, "a", "", Entry(exact)) is None
    refusal = one.offer(START, "b", "", Entry(PATIENT, expires=START))
    assert refusal is None or refusal.reason is Reason.DEADLINE
    short = Entry(PATIENT, expires=START + wait)
    refusal = one.offer(START, "a", "", short)
    assert refusal is not None
    assert refusal.reason is Reason.DEADLINE
    assert refusal.retry_after >= wait


def test_law_5_the_reason_names_what_binds() -> None:
    """A pause, a gate's bucket and a slot refuse with their own names, distinctly, and never for 0."""
    gates = {"": Quota(Rate(1), concurrency=2)}
    one = engine(Quota(), gates)
    seen = []
    for until in (None, 5):
        if until is not None:
            one.pause(START, "", START + until * NS)
        for _ in range(3):
            refusal = one.offer(START, "a", "", Entry(Policy.strict()))
            if refusal is not None:
                seen.append((refusal.reason, refusal.retry_after))
    assert {reason for reason, _ in seen} == {Reason.GATE, Reason.PAUSE}
    assert len({wait for _, wait in seen}) == len(seen)
    slots = engine(Quota(concurrency=1))
    slots.offer(START, "a", "", Entry(PATIENT))
    told = [slots.offer(START, "a", "", Entry(Policy.strict())) for _ in range(3)]
    assert [refusal.reason for refusal in told if refusal] == [Reason.SLOT] * 3
    assert min(refusal.retry_after for refusal in told if refusal) >= 50_000_000
    assert len({refusal.retry_after for refusal in told if refusal}) == 3
