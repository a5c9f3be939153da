"""The bucket against a textbook one in exact fractions: no drift, no rounding, no permit lost or made."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.account import Account, shape_of
from scheduler.core.bucket import Scale
from scheduler.core.quota import NS, Cost, Quota, Rate
from tests.core.play import costs, quotas

rates = st.builds(
    Rate,
    st.one_of(st.integers(1, 1000), st.fractions(Fraction(1, 100), 1000, max_denominator=100)),
    per=st.sampled_from([1, 3, 7, 60, 3600]),
    burst=st.integers(1, 20),
)
AWKWARD = [Rate(3), Rate(7), Rate.per_minute(1), Rate(2_000_000, per=60), Rate(1, per=3), Rate(0.1)]


def scale_of(rate: Rate) -> Scale:
    """The rule of a rate that names its burst, or has one of 1."""
    return Scale.of(rate, rate.burst or 1)


class Textbook:
    """A token bucket as books have it: a level, and the rational moment at which it was right."""

    def __init__(self, rate: Rate, now: int) -> None:
        self.per_ns = rate.per_second / NS
        self.burst = rate.burst or 1
        self.level = Fraction(self.burst)
        self.at = Fraction(now)

    def refill(self, moment: Fraction) -> None:
        """Let it fill up to a later moment."""
        self.level = min(Fraction(self.burst), self.level + (moment - self.at) * self.per_ns)
        self.at = moment

    def moment(self, now: int, permits: int) -> Fraction:
        """When it affords the permits, not before `now`: an exact rational."""
        self.refill(max(self.at, Fraction(now)))
        return self.at + max(Fraction(0), permits - self.level) / self.per_ns

    def take(self, moment: Fraction, permits: int) -> None:
        """Charge at an exact moment."""
        self.refill(moment)
        self.level -= permits


@given(rates, st.lists(st.tuples(st.integers(0, 20 * NS), st.integers(1, 20)), min_size=6, max_size=30))
def test_it_is_the_textbook_bucket_in_integers(rate: Rate, arrivals: list[tuple[int, int]]) -> None:
    """A line of jobs with any costs: each is ready in the nanosecond that exact fractions say, rounded up."""
    scale, book, now, last = scale_of(rate), Textbook(rate, 0), 0, Fraction(0)
    zero = scale.full(0)
    for gap, cost in arrivals:
        now, permits = now + gap, min(cost, rate.burst or 1)
        amount = permits * scale.unit
        moment = book.moment(max(now, math.ceil(last)) if last <= now else now, permits)
        moment = max(moment, last, Fraction(now))
        slot = max(now, math.ceil(last), scale.ready(zero, amount))
        assert slot == math.ceil(moment)
        book.take(moment, permits)
        zero = scale.charge(zero, slot, amount)
        last = moment
        book.refill(max(book.at, Fraction(slot)))
        assert scale.level(zero, slot) == book.level * scale.unit


@given(rates, st.integers(1, 20), st.integers(0, 10 * NS))
def test_one_nanosecond_before_it_is_ready_it_still_refuses(rate: Rate, cost: int, used: int) -> None:
    """The advertised time is exact from both sides."""
    scale, amount = scale_of(rate), min(cost, rate.burst or 1) * scale_of(rate).unit
    zero = scale.full(0) + min(used, scale.capacity)
    ready = scale.ready(zero, amount)
    assert scale.level(zero, ready) >= amount
    assert scale.level(zero, ready - 1) < amount


@pytest.mark.parametrize("rate", AWKWARD, ids=repr)
@pytest.mark.parametrize("burst", [1, 4])
def test_a_million_permits_do_not_drift(rate: Rate, burst: int) -> None:
    """Charged at each slot, by 1 or by the whole burst: the n-th is at n·cost/rate, for the millionth too."""
    scale = Scale.of(rate, burst)
    interval = Fraction(burst * NS) / rate.per_second
    amount, zero = burst * scale.unit, scale.full(0)
    for number in range(3_000):
        slot = scale.ready(zero, amount)
        assert slot == math.ceil(number * interval)
        zero = scale.charge(zero, slot, amount)
    # Every charge moved the state by its amount and by nothing else: a million of them are one sum.
    assert zero == scale.full(0) + 3_000 * amount
    assert scale.ready(scale.full(0) + 10**6 * amount, amount) == math.ceil(10**6 * interval)


@given(rates, st.integers(0, 10 * NS), st.integers(1, 20), st.integers(0, 5 * NS))
def test_what_is_given_back_is_as_if_it_had_never_been_charged(
    rate: Rate, idle: int, cost: int, later: int
) -> None:
    """Charge and give back at any time, with nothing between: the level is that of an untouched bucket."""
    account, untouched = (Account(shape_of(Quota(rate)), 0) for _ in range(2))
    amounts = account.shape.amounts(Cost(min(cost, rate.burst or 1)))
    account.take(idle, amounts)
    account.exchange(amounts, account.shape.nothing)
    scale = account.shape.scales[0]
    levels = [scale.level(a.zeros[0], idle + later) for a in (account, untouched)]
    assert levels[0] == levels[1] == scale.capacity


@given(rates, st.integers(1, 40), st.integers(0, 10 * NS))
def test_the_level_never_passes_the_burst(rate: Rate, given_back: int, later: int) -> None:
    """Give-backs are capped, however much is given back."""
    account = Account(shape_of(Quota(rate)), 0)
    account.exchange(account.shape.amounts(Cost(given_back)), account.shape.nothing)
    scale = account.shape.scales[0]
    assert scale.level(account.zeros[0], later) == scale.capacity


@given(rates, rates, st.integers(0, 30), st.integers(0, 10 * NS))
def test_a_new_rate_keeps_the_permits_and_makes_none(old: Rate, new: Rate, used: int, now: int) -> None:
    """The level in permits is kept, rounded down by less than a unit, and capped by the new burst."""
    one, two = scale_of(old), scale_of(new)
    zero = one.full(0) + used * one.unit  # possibly in debt
    before = Fraction(one.level(zero, now), one.unit)
    after = Fraction(two.level(one.rescale(zero, now, two), now), two.unit)
    assert after <= min(before, Fraction(new.burst or 1))
    assert after == new.burst or before - after < Fraction(1, two.unit)


@given(rates, st.integers(0, 30), st.integers(0, 10 * NS))
def test_the_same_rate_again_changes_nothing(rate: Rate, used: int, now: int) -> None:
    """A quota that is set to what it was moves no slot, not by a nanosecond."""
    scale = scale_of(rate)
    zero = max(scale.full(now), scale.full(0) + used * scale.unit)
    assert scale.rescale(zero, now, scale) == zero


@given(rates, st.integers(0, 10 * NS), st.integers(0, 10 * NS))
def test_it_is_full_exactly_when_it_says(rate: Rate, used: int, now: int) -> None:
    """`full_at` is the first nanosecond at which the bucket equals one that was never used."""
    scale = scale_of(rate)
    zero = scale.full(now) + min(used, scale.capacity)
    full = scale.full_at(zero)
    assert scale.level(zero, full) == scale.capacity
    assert scale.level(zero, full - 1) < scale.capacity


def test_several_buckets_are_taken_all_or_nothing() -> None:
    """The slowest bucket says when, and then each is charged its own amount."""
    account = Account(shape_of(Quota(Rate(2, burst=2), input_tokens=Rate(100, burst=100))), 0)
    amounts = account.shape.amounts(Cost(1, 100))
    account.take(0, amounts)
    assert account.ready(amounts) == NS
    account.take(NS, amounts)
    levels = [s.level(z, NS) // s.unit for s, z in zip(account.shape.scales, account.zeros, strict=True)]
    assert levels == [1, 0]


@given(quotas, costs, st.lists(st.tuples(st.integers(0, 2 * NS), costs), max_size=8))
def test_whether_and_what_is_taken_are_one_answer(
    quota: Quota, cost: Cost, before: list[tuple[int, Cost]]
) -> None:
    """What may be taken at once leaves the buckets as any charge would; what may not leaves them alone."""
    account, now = Account(shape_of(quota), 0), 0
    for gap, charged in before:
        now += gap
        account.take(now, account.shape.amounts(charged))
    amounts, zeros = account.shape.amounts(cost), list(account.zeros)
    taken = account.taken(amounts, now)
    assert account.zeros == zeros
    assert (taken is not None) == account.affords(amounts, now)
    if taken is not None:
        account.take(now, amounts)
        assert taken == account.zeros
