"""What may be used: rates, quotas, costs. Values only, checked where they are made.

A `Rate` is exact: integers and fractions as they are, floats as the decimal text they print as, so that
0.1 is one tenth. Inside, a rate is the reduced fraction p/q of permits per nanosecond (`bucket.Scale`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import TypeVar

Number = int | float | Fraction | Decimal

NS = 1_000_000_000
"""Nanoseconds in a second: the API speaks seconds, everything inside integer nanoseconds."""

WORD = 2**63
"""Bucket arithmetic must fit a signed 64-bit column, so that every store can keep it exactly."""

LONGEST = 1 << 62
"""Nanoseconds of the longest time that is taken, 146 years: from now on it fits such a column too."""

DIMENSIONS = ("requests", "input_tokens", "output_tokens")
"""What a job costs and a quota limits, in the order in which buckets are kept."""

T = TypeVar("T")


def exact(name: str, value: Number) -> Fraction:
    """Read a number as the exact fraction that its text shows. Raises TypeError or ValueError, naming it."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction, Decimal)):
        raise TypeError(f"{name}: must be a number, got {value!r}")
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        raise ValueError(f"{name}: must be finite, got {value!r}")
    return Fraction(str(value)) if isinstance(value, (float, Decimal)) else Fraction(value)


def positive(name: str, value: Number) -> Fraction:
    """Read an exact number above zero."""
    number = exact(name, value)
    if number <= 0:
        raise ValueError(f"{name}: must be above 0, got {value!r}")
    return number


def whole(name: str, value: int, least: int) -> int:
    """Check an integer with a lower bound."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: must be at least {least}, got {value!r}")
    return value


def instance(name: str, value: object, kind: type[T]) -> T:
    """Check that an argument is of a type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: must be a {kind.__name__}, got {value!r}")
    return value


def amount(name: str, value: int) -> int:
    """Check a number of permits: a whole one of at least 0 that every store can keep."""
    if whole(name, value, 0) >= WORD:
        raise ValueError(f"{name}: must be below 2^63, got {value!r}")
    return value


def plain_text(name: str, text: str) -> str:
    """Check that every store can keep a text: valid Unicode without NUL."""
    if "\0" in text or not (text.isascii() or text == text.encode("utf-8", "ignore").decode()):
        raise ValueError(f"{name}: must be valid Unicode without NUL, got {text!r}")
    return text


def nanoseconds(name: str, seconds: Number) -> int:
    """Turn seconds of at least 0 into whole nanoseconds, rounded up."""
    number = exact(name, seconds)
    if number < 0:
        raise ValueError(f"{name}: must not be negative, got {seconds!r}")
    length = math.ceil(number * NS)
    if length > LONGEST:
        raise ValueError(f"{name}: must be at most {LONGEST // NS} seconds, got {seconds!r}")
    return length


def duration(name: str, seconds: Number) -> int:
    """Turn seconds above 0 into whole nanoseconds, rounded up."""
    length = nanoseconds(name, seconds)
    if length == 0:
        raise ValueError(f"{name}: must be above 0, got {seconds!r}")
    return length


@dataclass(frozen=True, slots=True)
class Rate:
    """`permits` every `per` seconds, of which up to `burst` may be saved up: one token bucket's shape.

    `burst` None means the default of the place where the rate is used: 1 for requests, one minute's
    permits for tokens. Raises ValueError for rate ≤ 0, NaN, burst < 1, or a rate whose reduced fraction
    does not fit 64-bit arithmetic (write ``Rate(1, per=3)`` or a Fraction instead of ``Rate(1 / 3)``).
    """

    permits: Number
    per: Number = 1.0
    burst: int | None = None

    def __post_init__(self) -> None:
        positive("permits", self.permits)
        positive("per", self.per)
        if self.burst is not None:
            whole("burst", self.burst, 1)
        p, q = self.per_nanosecond
        if p >= WORD or q * (self.burst or 1) >= WORD:
            raise ValueError(
                f"permits: {self.permits!r} per {self.per!r} s with burst {self.burst!r} "
                "does not fit 64-bit arithmetic; give the rate as a Fraction or a whole number per period"
            )

    @property
    def per_nanosecond(self) -> tuple[int, int]:
        """Permits per nanosecond as a reduced fraction (p, q)."""
        ratio = exact("permits", self.permits) / (exact("per", self.per) * NS)
        return ratio.numerator, ratio.denominator

    @property
    def per_second(self) -> Fraction:
        """Permits per second, exactly."""
        return exact("permits", self.permits) / exact("per", self.per)

    @classmethod
    def per_minute(cls, permits: Number, burst: int | None = None) -> Rate:
        """`permits` every 60 seconds."""
        return cls(permits, per=60, burst=burst)

    @classmethod
    def per_hour(cls, permits: Number, burst: int | None = None) -> Rate:
        """`permits` every 3600 seconds."""
        return cls(permits, per=3600, burst=burst)


def full_burst(name: str, rate: Rate) -> int:
    """The burst of a rate where it is used. Raises ValueError if a default makes it too large to keep."""
    if rate.burst is not None:
        return rate.burst
    burst = 1 if name == "requests" else max(1, math.ceil(rate.per_second * 60))
    if rate.per_nanosecond[1] * burst >= WORD:
        raise ValueError(f"{name}: {rate!r} does not fit 64-bit arithmetic with its burst of {burst}")
    return burst


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant, or a gate, may use. A limit that is None does not bind.

    `requests`, `input_tokens`, `output_tokens`: a `Rate` each, taken all or nothing; `concurrency`: jobs
    that run at once; `weight`: share of a gate under contention, above 0 and at most 1,000,000.
    """

    requests: Rate | None = None
    input_tokens: Rate | None = field(default=None, kw_only=True)
    output_tokens: Rate | None = field(default=None, kw_only=True)
    concurrency: int | None = field(default=None, kw_only=True)
    weight: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            rate = getattr(self, name)
            if rate is not None:
                full_burst(name, instance(name, rate, Rate))
        if self.concurrency is not None:
            amount("concurrency", whole("concurrency", self.concurrency, 1))
        share = positive("weight", self.weight)
        if share > 1_000_000 or share.denominator > 10**12:
            raise ValueError(f"weight: must be at most 1000000 with at most 12 decimals, got {self.weight!r}")


@dataclass(frozen=True, slots=True, init=False)
class Cost:
    """What a job is expected to use: whole numbers, not negative, below 2^63."""

    requests: int = 1
    input_tokens: int = 0
    output_tokens: int = 0

    def __init__(self, requests: int = 1, input_tokens: int = 0, output_tokens: int = 0) -> None:
        # What a frozen dataclass writes takes half as long again, and two of these are made in a call.
        known = requests.__class__ is input_tokens.__class__ is output_tokens.__class__ is int
        if not (known and 0 <= requests < WORD and 0 <= input_tokens < WORD and 0 <= output_tokens < WORD):
            for name, value in zip(DIMENSIONS, (requests, input_tokens, output_tokens), strict=True):
                amount(name, value)
        _set_requests(self, requests)
        _set_input(self, input_tokens)
        _set_output(self, output_tokens)


_set_requests, _set_input, _set_output = (getattr(Cost, name).__set__ for name in DIMENSIONS)


@dataclass(frozen=True, slots=True, init=False)
class Usage(Cost):
    """What a job really used: the same three as `Cost`."""


ONE = Cost()
"""The cost of a job that names none; compared by identity where speed matters."""

NOTHING = Usage(0, 0, 0)
"""The usage of a job that did not begin: all that it was charged is given back."""
