"""The arithmetic of headers: rounding, caps, and fields that a parser accepts."""

import math
from fractions import Fraction

import http_sf
import pytest
from http_sf.types import BareItemType
from hypothesis import given
from hypothesis import strategies as st

from scheduler import ErrRateLimited, Policy, Quota, Rate, Scheduler
from scheduler.http import answer, limit_headers, retry_after_seconds, retry_headers
from tests.http.serving import StillClock

Parameters = dict[str, dict[str, BareItemType]]


def parsed(headers: dict[str, str], name: str) -> Parameters:
    """A field as a dictionary of its policies."""
    found = http_sf.parse(headers[name].encode(), tltype="list")
    assert isinstance(found, list)
    return {str(item[0]): item[1] for item in found if isinstance(item, tuple) and isinstance(item[1], dict)}


@pytest.mark.parametrize(
    ("seconds", "whole"),
    [(0.001, 1), (0.4, 1), (0.5, 1), (1.0, 1), (1.0000001, 2), (2.5, 3), (59.4, 60), (60.0, 60), (61.0, 60)],
)
def test_retry_after_is_rounded_up(seconds: float, whole: int) -> None:
    assert retry_after_seconds(seconds) == whole


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-12])
def test_retry_after_is_never_zero(seconds: float) -> None:
    assert retry_headers(seconds) == {"Retry-After": "1", "retry-after-ms": "1"}


@pytest.mark.parametrize("seconds", [1e9, math.inf])
def test_retry_after_is_capped(seconds: float) -> None:
    assert retry_headers(seconds) == {"Retry-After": "60", "retry-after-ms": "60000"}
    assert retry_headers(seconds, 3600) == {"Retry-After": "3600", "retry-after-ms": "3600000"}


@given(st.floats(0, 1e6), st.integers(1, 3600))
def test_no_client_is_told_to_come_too_early(seconds: float, most: int) -> None:
    headers = retry_headers(seconds, most)
    whole, milliseconds = int(headers["Retry-After"]), int(headers["retry-after-ms"])
    assert 1 <= whole <= most
    assert 1 <= milliseconds <= 1000 * whole
    if seconds <= most:
        assert whole >= seconds - 1e-9
        assert milliseconds / 1000 >= seconds - 2e-9
        assert whole - seconds < 1 or whole == 1


@given(st.lists(st.floats(0, 100), min_size=2).map(sorted))
def test_a_longer_wait_never_has_an_earlier_header(waits: list[float]) -> None:
    numbers = [retry_after_seconds(wait) for wait in waits]
    assert numbers == sorted(numbers)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, Fraction]:
    """A burst and a rate such as `Rate` accepts: they fit 64 bits together."""
    rate = draw(st.fractions(Fraction(1, 10**6), 10**9, max_denominator=10**6))
    return draw(st.integers(1, (2**63 - 1) // (rate / 10**9).denominator)), rate


@given(shapes(), st.fractions(-1000, 1, max_denominator=1000) | st.floats(0, 1).map(Fraction))
def test_fields_follow_the_mapping(shape: tuple[int, Fraction], share: Fraction) -> None:
    burst, rate = shape
    held = min(Fraction(burst), share * burst)
    headers = limit_headers({"requests": (burst, rate, held)})
    policy, limit = parsed(headers, "RateLimit-Policy")["tenant"], parsed(headers, "RateLimit")["tenant"]
    r, t = limit["r"], limit.get("t")
    assert policy == {"q": min(burst, 10**15 - 1), "w": math.ceil(burst / rate)}
    assert r == min(10**15 - 1, max(0, math.floor(held)))
    assert (t is None) == (held == burst)
    if t is not None:
        assert isinstance(t, int)
        assert isinstance(r, int)
        assert t >= 1
        assert Fraction(r, t) <= rate, "a client that spreads r over t would exceed the rate"
    assert headers["X-RateLimit-Limit"] == str(burst)
    assert headers["X-RateLimit-Remaining"] == str(max(0, math.floor(held)))


@given(shapes(), st.floats(1e-9, 200))
def test_a_refusal_has_one_number(shape: tuple[int, Fraction], wait: float) -> None:
    burst, rate = shape
    levels = {"requests": (burst, rate, Fraction(burst)), "concurrency": (4, Fraction(0), Fraction(4))}
    found = answer(ErrRateLimited("acme", "gate", wait), levels)
    headers = dict(found.headers)
    whole = int(headers["Retry-After"])
    for limit in parsed(headers, "RateLimit").values():
        assert limit == {"r": 0, "t": whole}
    assert headers["X-RateLimit-Remaining"] == "0"


def test_the_example_of_the_research() -> None:
    levels = {
        "requests": (60, Fraction(1), Fraction(25, 2)),
        "input_tokens": (1000, Fraction(10), Fraction(1)),
        "concurrency": (20, Fraction(0), Fraction(7)),
    }
    assert limit_headers(levels) == {
        "RateLimit-Policy": '"tenant";q=60;w=60, "slots";q=20;qu="concurrent-requests"',
        "RateLimit": '"tenant";r=12;t=12, "slots";r=7',
        "X-RateLimit-Limit": "60",
        "X-RateLimit-Remaining": "12",
    }


def test_nothing_left_says_when_there_is_more() -> None:
    empty = {"requests": (5, Fraction(2), Fraction(-3))}
    assert parsed(limit_headers(empty), "RateLimit")["tenant"] == {"r": 0, "t": 2}
    assert parsed(limit_headers(empty, 9), "RateLimit")["tenant"] == {"r": 0, "t": 9}


def test_what_has_no_limit_has_no_headers() -> None:
    assert limit_headers({}) == {}
    assert limit_headers({"input_tokens": (10, Fraction(1), Fraction(1))}) == {}


async def test_ten_refused_together_come_back_one_after_another() -> None:
    quota = Quota(Rate(2, burst=5))
    async with Scheduler(quotas=quota, policy=Policy.strict(), clock=StillClock()) as scheduler:
        for _ in range(5):
            async with scheduler.admit("acme"):
                pass
        refused: list[ErrRateLimited] = []
        for _ in range(10):
            with pytest.raises(ErrRateLimited) as caught:
                async with scheduler.admit("acme"):
                    pass
            refused.append(caught.value)
    floats = [error.retry_after for error in refused]
    assert floats == [0.5 * (1 + place) for place in range(10)]
    answers = [answer(error).headers for error in refused]
    assert [int(headers["Retry-After"]) for headers in answers] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert len({headers["retry-after-ms"] for headers in answers}) == 10


async def test_levels_are_exact_and_leave_no_trace() -> None:
    clock = StillClock()
    quota = Quota(Rate(1, per=3, burst=5), input_tokens=Rate(7, burst=70), concurrency=2)
    async with Scheduler(quotas=quota, clock=clock) as scheduler:
        full = {
            "requests": (5, Fraction(1, 3), Fraction(5)),
            "input_tokens": (70, Fraction(7), Fraction(70)),
            "concurrency": (2, Fraction(0), Fraction(2)),
        }
        assert scheduler.levels("acme") == full
        assert (await scheduler.statistics()).tenants == 0
        async with scheduler.admit("acme"):
            clock.move(1)
            assert scheduler.levels("acme") == {
                **full,
                "requests": (5, Fraction(1, 3), Fraction(13, 3)),
                "concurrency": (2, Fraction(0), Fraction(1)),
            }
        clock.move(2)
        assert scheduler.levels("acme") == full
