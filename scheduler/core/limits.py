"""The limits that hold at a gate: the operator's, those that the upstream named, and how far they count."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from scheduler.core.gate import RAMP_FULL, Gate
from scheduler.core.quota import DIMENSIONS, Quota, Rate, full_burst, nanoseconds

LONGEST = 3600.0
"""Seconds: the longest time that is believed when an upstream names one."""


def named(seconds: float) -> int:
    """A time that an upstream named, in nanoseconds, as far as it is believed."""
    return nanoseconds("retry_after", min(seconds, LONGEST))


def limits_of(gate: Gate) -> Quota:
    """The limits that hold now: those of the upstream where it named any, by its ramp, under the ceiling."""
    given, ceiling = gate.upstream.quota, gate.upstream.ceiling
    rates: dict[str, Any] = {}
    for name in DIMENSIONS:
        rate, bound = getattr(given, name), getattr(ceiling, name, None)
        if rate is None:
            continue
        per_second = Fraction(gate.told[name], 60) if name in gate.told else rate.per_second
        if bound is not None:
            per_second = min(per_second, bound.per_second)
        if per_second != rate.per_second or gate.ramp < RAMP_FULL:
            rates[name] = _rescaled(name, rate, per_second, Fraction(gate.ramp, RAMP_FULL))
    return replace(given, **rates) if rates else given


def _rescaled(name: str, rate: Rate, per_second: Fraction, ramp: Fraction) -> Rate:
    """A rate of so much per second, in whole permits per minute and at least one.

    The burst is at most a minute's permits, which is what the upstream would save up. Slower growth leaves
    it as it is: it must not make a job too large for ever.
    """
    minute = max(1, int(per_second * 60))
    burst = full_burst(name, rate)
    burst = minute if rate.burst is None and name != "requests" else min(burst, minute)
    try:
        return Rate.per_minute(max(1, int(minute * ramp)), burst=burst)
    except ValueError:  # a number that no bucket can keep exactly
        return rate
