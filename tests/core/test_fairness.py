"""Start-time fair queueing, by its tags."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.account import shape_of
from scheduler.core.fairness import REQUEST, TAG_SCALE, FairOrder, fair_cost, weighted
from scheduler.core.quota import NS, Cost, Quota, Rate


def test_the_cost_of_a_job_is_the_largest_of_its_amounts_over_the_rates() -> None:
    """In nanoseconds of gate time; a request counts 1 where there is no rate, and nothing is free."""
    shape = shape_of(Quota(Rate(10, burst=10), output_tokens=Rate(100, burst=100)))
    assert fair_cost(shape, shape.amounts(Cost(1, 0, 5))) == NS // 10
    assert fair_cost(shape, shape.amounts(Cost(1, 0, 50))) == NS // 2
    assert fair_cost(shape, shape.amounts(Cost(0, 0, 0))) == 1
    assert fair_cost(shape_of(Quota()), ()) == REQUEST


@given(st.integers(1, 10**12), st.fractions(Fraction(1, 1000), 1000, max_denominator=1000))
def test_a_step_is_the_cost_per_weight_and_never_nothing(cost: int, weight: Fraction) -> None:
    """Rounded down by less than one tag, at least one."""
    step = weighted(cost, weight.as_integer_ratio())
    assert step >= 1
    assert step == 1 or 0 <= Fraction(cost * TAG_SCALE) / weight - step < 1


def serve(order: FairOrder, backlogged: dict[str, int], steps: dict[str, int], count: int) -> list[str]:
    """Serve always-backlogged tenants `count` times, as a gate does."""
    served = []
    for _ in range(count):
        start, name = min((start, name) for name, start in backlogged.items())
        order.serve(name, start, steps[name], start)
        backlogged[name] = order.start(name)
        served.append(name)
    return served


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 100), min_size=2), st.integers(10, 200))
def test_no_tenant_gets_ahead_by_more_than_a_job_each(steps: dict[str, int], count: int) -> None:
    """The published bound, over every interval of a run in which all are backlogged."""
    order = FairOrder()
    served = serve(order, {name: order.start(name) for name in steps}, steps, count)
    for first in range(0, count, 7):
        work = dict.fromkeys(steps, 0)
        for name in served[first:]:
            work[name] += steps[name]
            for one, two in combinations(steps, 2):
                assert abs(work[one] - work[two]) <= steps[one] + steps[two]


def test_a_newcomer_starts_where_the_others_are() -> None:
    """An idle tenant has saved up no credit, and owes nothing."""
    order = FairOrder()
    serve(order, {"a": 0}, {"a": 5}, 100)
    assert order.start("b") == order.virtual == 99 * 5
    assert order.has_debt("a")
    assert not order.has_debt("b")


def test_a_correction_counts_only_in_the_busy_period_of_its_grant() -> None:
    """What was charged in one busy period gives nobody credit in another."""
    order = FairOrder()
    period = order.serve("a", 0, 50, 0)
    order.correct("a", -20, period)
    assert order.start("a") == 30
    order.end_busy_period()
    assert order.start("a") == 0
    again = order.serve("a", 0, 50, 0)
    order.correct("a", -20, period)
    assert order.start("a") == 50
    order.correct("a", -100, again)
    assert order.start("a") == 0
