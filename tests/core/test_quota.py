# mypy: disable-error-code="arg-type"
"""Rates, quotas, costs and policies: exact values, and one clear complaint for each bad one."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.account import shape_of
from scheduler.core.policy import Overload, Policy, Rung
from scheduler.core.quota import (
    LONGEST,
    NS,
    WORD,
    Cost,
    Quota,
    Rate,
    Usage,
    duration,
    nanoseconds,
    plain_text,
)
from scheduler.core.signals import Upstream

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "error", "name", "value"),
    [
        (lambda: Rate(NAN), ValueError, "permits", "nan"),
        (lambda: Rate(INF), ValueError, "permits", "inf"),
        (lambda: Rate(Decimal("NaN")), ValueError, "permits", "NaN"),
        (lambda: Rate(0), ValueError, "permits", "0"),
        (lambda: Rate(-1), ValueError, "permits", "-1"),
        (lambda: Rate(True), TypeError, "permits", "True"),
        (lambda: Rate("2"), TypeError, "permits", "'2'"),
        (lambda: Rate(None), TypeError, "permits", "None"),
        (lambda: Rate(1, per=0), ValueError, "per", "0"),
        (lambda: Rate(1, per=-2.5), ValueError, "per", "-2.5"),
        (lambda: Rate(1, per=NAN), ValueError, "per", "nan"),
        (lambda: Rate(1, per="s"), TypeError, "per", "'s'"),
        (lambda: Rate(1, burst=0), ValueError, "burst", "0"),
        (lambda: Rate(1, burst=-3), ValueError, "burst", "-3"),
        (lambda: Rate(1, burst=1.5), TypeError, "burst", "1.5"),
        (lambda: Rate(1, burst=True), TypeError, "burst", "True"),
        (lambda: Rate(1, burst="5"), TypeError, "burst", "'5'"),
        (lambda: Rate(1 / 3), ValueError, "permits", "0.333"),
        (lambda: Rate(1, burst=WORD), ValueError, "permits", "burst"),
        (lambda: Rate(10**30), ValueError, "permits", "1000000000000000000000000000000"),
        (lambda: Quota(2), TypeError, "requests", "2"),
        (lambda: Quota(input_tokens="x"), TypeError, "input_tokens", "'x'"),
        (lambda: Quota(input_tokens=Rate(123456789.12345679)), ValueError, "input_tokens", "123456789"),
        (lambda: Quota(concurrency=0), ValueError, "concurrency", "0"),
        (lambda: Quota(concurrency=2.0), TypeError, "concurrency", "2.0"),
        (lambda: Quota(weight=0), ValueError, "weight", "0"),
        (lambda: Quota(weight=NAN), ValueError, "weight", "nan"),
        (lambda: Quota(weight=2_000_000), ValueError, "weight", "2000000"),
        (lambda: Quota(weight="1"), TypeError, "weight", "'1'"),
        (lambda: Cost(-1), ValueError, "requests", "-1"),
        (lambda: Cost(1, 0.5), TypeError, "input_tokens", "0.5"),
        (lambda: Cost(1, 0, True), TypeError, "output_tokens", "True"),
        (lambda: Policy(max_wait=-1), ValueError, "max_wait", "-1"),
        (lambda: Policy(max_wait=NAN), ValueError, "max_wait", "nan"),
        (lambda: Policy(max_wait="1"), TypeError, "max_wait", "'1'"),
        (lambda: Policy(max_queue=-1), ValueError, "max_queue", "-1"),
        (lambda: Policy(max_queue=1.0), TypeError, "max_queue", "1.0"),
        (lambda: nanoseconds("timeout", -0.1), ValueError, "timeout", "-0.1"),
        (lambda: nanoseconds("timeout", INF), ValueError, "timeout", "inf"),
        (lambda: nanoseconds("timeout", 1e10), ValueError, "timeout", "10000000000.0"),
        (lambda: duration("lease", 0), ValueError, "lease", "0"),
        (lambda: plain_text("tenant", "a\0b"), ValueError, "tenant", r"'a\x00b'"),
        (lambda: plain_text("tenant", "é\udc80"), ValueError, "tenant", r"'é\udc80'"),
        (lambda: Quota(concurrency=WORD), ValueError, "concurrency", str(WORD)),
        (lambda: Cost(1, WORD), ValueError, "input_tokens", str(WORD)),
        (lambda: Usage(1, 0, WORD), ValueError, "output_tokens", str(WORD)),
        (lambda: Policy(max_wait=1e10), ValueError, "max_wait", "10000000000.0"),
        (lambda: Rung(1e10, model="x"), ValueError, "after", "10000000000.0"),
        (lambda: Overload(1e10), ValueError, "target", "10000000000.0"),
        (lambda: Upstream(Quota(), spend_probe=1e10), ValueError, "spend_probe", "10000000000.0"),
    ],
)
def test_bad_input_names_the_argument_and_the_value(
    make: Callable[[], Any], error: type[Exception], name: str, value: str
) -> None:
    """One exception at once, whose text starts with the argument and shows what it was given."""
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(f"{name}:")
    assert value in str(caught.value)


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_a_rate_is_exact_and_reduced(permits: int, per: int) -> None:
    """Whole numbers stay whole: no rounding between what was said and what is charged."""
    rate = Rate(permits, per=per)
    p, q = rate.per_nanosecond
    assert Fraction(p, q) == Fraction(permits, per * 10**9)
    assert math.gcd(p, q) == 1


@given(st.decimals(Decimal("0.001"), Decimal(1000), places=3))
def test_a_float_is_read_as_its_text(permits: Decimal) -> None:
    """0.1 is one tenth, and not the nearest binary fraction."""
    assert Rate(float(permits)).per_second == Fraction(str(float(permits))) == Rate(permits).per_second


def test_a_burst_has_a_default_by_place() -> None:
    """One request; one minute's tokens, but at least one."""
    quota = Quota(Rate(5), input_tokens=Rate(100), output_tokens=Rate(1, per=3600))
    bursts = [scale.capacity // scale.unit for scale in shape_of(quota).scales]
    assert bursts == [1, 6000, 1]


def test_never_names_the_first_limit_that_a_cost_cannot_fit() -> None:
    """Name, cost and burst, in permits; None while it fits."""
    shape = shape_of(Quota(Rate(1, burst=2), output_tokens=Rate(10, burst=50)))
    assert shape.never(Cost(2, 999, 50)) is None
    assert shape.never(Cost(3, 0, 51)) == ("requests", 3, 2)
    assert shape.never(Cost(1, 0, 51)) == ("output_tokens", 51, 50)


def test_a_decimal_weight_is_a_weight() -> None:
    """Any exact number will do, as with rates."""
    assert shape_of(Quota(weight=Fraction(1, 4))).share == 0.25
    assert shape_of(Quota(weight=Decimal("0.25"))).weight == (1, 4)


def test_the_largest_numbers_and_the_longest_times_are_taken() -> None:
    """What any store can keep is good, up to the very bound."""
    assert nanoseconds("timeout", Fraction(LONGEST, NS)) == LONGEST
    assert Policy(max_wait=LONGEST // NS).max_wait_ns == LONGEST // NS * NS
    assert Cost(WORD - 1, WORD - 1, WORD - 1).requests == WORD - 1
    assert plain_text("tenant", "Łódź 中 🎈") == "Łódź 中 🎈"
