"""What an `Outage` says, and the share of a quota."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from scheduler import Outage, Quota, Rate, Scheduler


@pytest.mark.parametrize(
    ("wishes", "text"),
    [
        ({"share": 0}, "share: must be above 0, got 0"),
        ({"share": -0.5}, "share: must be above 0"),
        ({"share": 1.5}, "share: must be at most 1, got 1.5"),
        ({"share": "half"}, "share: must be a number, got 'half'"),
        ({"share": float("nan")}, "share: must be finite"),
        ({"patience": 0}, "patience: must be above 0, got 0"),
        ({"patience": None}, "patience: must be a number, got None"),
    ],
)
def test_bad_arguments_are_named(wishes: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        Outage(**wishes)


def test_admit_needs_a_share_and_only_a_store_can_be_down() -> None:
    with pytest.raises(TypeError, match="share: must be a number, got None"):
        Outage.admit(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outage: needs a store"):
        Scheduler(outage=Outage.refuse())


def test_the_share_of_a_quota_is_exact() -> None:
    whole = Quota(Rate(Fraction(1, 3), burst=5), output_tokens=Rate(1000, per=7), concurrency=3, weight=2.5)
    share = Outage.admit(Fraction(1, 3)).quota(whole)
    assert share.requests is not None
    assert share.output_tokens is not None
    assert share.requests.per_second == Fraction(1, 9)
    assert share.requests.burst == 1
    assert share.output_tokens.per_second == Fraction(1000, 21)
    assert share.output_tokens.burst == 8572 // 3
    assert (share.concurrency, share.weight, share.input_tokens) == (1, 2.5, None)
    assert Outage.admit(0.1).quota(Quota()) == Quota()
    assert Outage.refuse() == Outage()
