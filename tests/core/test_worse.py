"""Waits that get worse after they were promised are judged again: equal is accepted, and nobody waits on."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.core.account import Account, Projection, shape_of
from scheduler.core.policy import Policy
from scheduler.core.quota import NS, Cost, Quota, Rate, Usage
from tests.core.play import MS, START, Op, Play, engine, rates, token_rates

TWO = Quota(Rate(2, burst=5))
FIVE = [Op("offer")] * 5


def refused(play: Play) -> list[int]:
    """The jobs that were accepted and refused later."""
    return [told.job for told in play.told if told.what == "max_wait"]


def test_whoever_a_continuation_that_starts_at_once_makes_wait_is_judged() -> None:
    """Those in line have permits and no slot; it brings its own slot, and takes a permit."""
    quota = Quota(Rate(2, burst=5), concurrency=2)
    waits = [Op("offer", policy=Policy(max_wait=wait)) for wait in (1, 0.4, 2)]
    play = Play(engine(quota)).run([*[Op("offer")] * 2, *waits, *[Op("chain", pick=0)] * 3])
    assert refused(play) == [3]


def test_who_moves_up_to_another_gate_because_of_a_refusal_goes_at_once() -> None:
    """The first at gate y would wait too long behind one that gate x stops, and leaves the next a permit."""
    play = Play(engine(TWO, gates={"x": Quota(), "y": Quota()}))
    play.run([Op("pause", gate="x", delay=9 * NS), *[Op("offer", gate="y")] * 4])
    play.run([Op("offer", gate="y", cost=Cost(5), policy=Policy(max_wait=2.2)), Op("offer", gate="y")])
    play.do(Op("offer", gate="x", head_start=NS))
    assert refused(play) == [4]
    assert play.starts()[5] == START


def test_the_bound_of_a_try_that_goes_back_holds_again() -> None:
    """Alone, as well as before others who may wait for longer."""
    script = [Op("offer", policy=Policy(max_wait=1)), *FIVE[1:], Op("retry", gap=100 * MS, pick=0)]
    play = Play(engine(TWO), by_number=True).run(script)
    play.do(Op("set_quota", quota=Quota(Rate(1, per=2, burst=5))))
    assert refused(play) == [0]


def test_a_wait_counts_from_when_a_try_went_back() -> None:
    """It ran for longer than it may wait, and waits for half a second now."""
    script = [Op("offer", policy=Policy(max_wait=1)), Op("advance", gap=3 * NS), *FIVE]
    play = Play(engine(TWO), by_number=True).run([*script, Op("retry", pick=0)])
    assert not refused(play)
    play.drain()
    assert play.starts()[0] == START + 3500 * MS


def test_several_buckets_do_not_make_a_line_a_walk() -> None:
    """The work in line says that all start in time; `too_long` would ask each of them."""
    quota = Quota(Rate(2, burst=5), output_tokens=Rate(100, burst=1000))
    play = Play(engine(quota)).run([Op("offer")] * 20)
    line = play.engine.tenants["a"].lines[""]
    line.tighten(20 * NS)
    assert play.engine._surely_in_time(line, play.now)
    play.do(Op("settle", pick=0, usage=Usage(9, 0, 1200)))
    assert play.engine._surely_in_time(line, play.now), "7.5 s of requests, 4.5 s of those, 2 s of tokens"
    line.tighten(10 * NS)
    assert not play.engine._surely_in_time(line, play.now)


@given(
    st.builds(Quota, rates, input_tokens=token_rates, output_tokens=token_rates),
    st.lists(st.builds(Cost, st.integers(0, 1), st.integers(0, 50), st.integers(0, 50)), max_size=30),
    st.tuples(*[st.integers(-100, 100)] * 3),
)
@example(
    Quota(Rate(1), output_tokens=Rate(1, burst=10)), [Cost(), Cost(0, 0, 10), Cost(0, 0, 10)], (100, 0, 0)
)
def test_nobody_starts_after_the_time_that_the_work_tells(
    quota: Quota, costs: list[Cost], spent: tuple[int, ...]
) -> None:
    """Buckets that are filled for more than one, and debts; with one bucket it is the very time."""
    account = Account(shape_of(quota), START)
    account.zeros = [
        zero + (scale.capacity * part) // 100
        for zero, scale, part in zip(account.zeros, account.shape.scales, spent, strict=False)
    ]
    work, run, last = account.shape.nothing, Projection(account, START), START
    for cost in costs:
        amounts = account.shape.amounts(cost)
        work = tuple(map(sum, zip(work, amounts, strict=True)))
        last = run.start(amounts)
    told = account.surely(work, START)
    assert last <= told
    if account.shape.only is not None and costs and costs[-1].requests:
        assert last == told
