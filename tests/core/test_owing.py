"""Charges that come to their account later are charged as if they had come at once."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from scheduler import Cost, Quota, Rate, Usage
from scheduler.core.account import shape_of
from scheduler.core.owing import Owed
from scheduler.core.quota import NS

QUOTA = Quota(Rate(Fraction(7, 3), burst=5), output_tokens=Rate(1000, per=7))
OTHER = Quota(Rate(1, burst=100), input_tokens=Rate(10, burst=50))

charges = st.lists(
    st.tuples(st.integers(0, 20 * NS), st.integers(0, 6), st.integers(0, 1500), st.integers(0, 1500)),
    min_size=1,
    max_size=12,
)


@given(charges, st.integers(-20, 20))
def test_what_was_charged_elsewhere_is_charged_at_its_time(
    given_charges: list[tuple[int, int, int, int]], level: int
) -> None:
    shape = shape_of(QUOTA)
    zeros = [scale.full(0) + (5 - level) * scale.unit for scale in shape.scales]
    owed, expected = Owed(shape), list(zeros)
    for time, requests, estimate, real in sorted(given_charges):
        cost, usage = Cost(requests, 0, estimate), Usage(requests, 0, real)
        owed.charge(time, cost)
        owed.correct(cost, usage)
        expected = [
            max(zero, scale.full(time)) + amount
            for scale, zero, amount in zip(shape.scales, expected, shape.amounts(cost), strict=True)
        ]
        more = (r - c for r, c in zip(shape.amounts(usage), shape.amounts(cost), strict=True))
        expected = [zero + difference for zero, difference in zip(expected, more, strict=True)]
    assert owed.onto(zeros, shape, 20 * NS) == expected
    assert owed.used == Usage(sum(c[1] for c in given_charges), 0, sum(c[3] for c in given_charges))


def test_under_another_quota_all_of_it_is_charged_when_it_comes() -> None:
    owed, shape = Owed(shape_of(QUOTA)), shape_of(OTHER)
    owed.charge(0, Cost(3, 40, 7))
    zeros = owed.onto([scale.full(0) for scale in shape.scales], shape, 9 * NS)
    levels = [scale.level(zero, 9 * NS) / scale.unit for scale, zero in zip(shape.scales, zeros, strict=True)]
    assert levels == [97, 10]


def test_nothing_is_charged_at_a_time_that_has_not_come_by_a_clock_that_was_set_back() -> None:
    owed, shape = Owed(shape_of(QUOTA)), shape_of(QUOTA)
    owed.charge(1_000 * NS, Cost(2))
    zeros = owed.onto([scale.full(0) for scale in shape.scales], shape, NS)
    assert shape.scales[0].level(zeros[0], NS) == 3 * shape.scales[0].unit
