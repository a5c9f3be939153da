"""The structured fields `RateLimit` and `RateLimit-Policy`: the only place that knows the draft's syntax.

Follows draft-ietf-httpapi-ratelimit-headers-11 (23 May 2026). A draft may still change: its editors discussed
other names for `r` and `t`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import http_sf
from http_sf.types import BareItemType, ListType

Levels = Mapping[str, tuple[int, Fraction, Fraction]]
"""What `Scheduler.levels` returns: by bucket its burst, its permits per second and the permits it holds."""

LARGEST = 10**15 - 1
"""The largest integer of a structured field (RFC 9651, section 3.3.1). A burst may be larger; the seconds in
which it fills may not, since a `Rate` fits 64 bits of nanoseconds."""

POLICIES = {"requests": "tenant", "concurrency": "slots"}
"""Buckets that are published, and their policies' names. Model tokens are not a quota unit of the draft, and
a gate is not published at all: it would show one tenant what the others use."""


def rate_limit_fields(levels: Levels, wait_s: int | None = None, *, refused: bool = False) -> dict[str, str]:
    """Write both fields, or neither where no published bucket limits the tenant.

    `wait_s`: whole seconds until the tenant's next request would start. On a refusal nothing is left for this
    caller, whatever it is that binds: every policy says `r=0` and the same `t` as Retry-After.
    """
    policies: ListType = []
    limits: ListType = []
    for bucket, name in POLICIES.items():
        if bucket in levels:
            burst, rate, held = levels[bucket]
            policies.append((name, _policy(burst, rate)))
            limits.append((name, _limit(burst, rate, Fraction(0) if refused else held, wait_s)))
    if not policies:
        return {}
    return {"RateLimit-Policy": http_sf.ser(policies), "RateLimit": http_sf.ser(limits)}


def remaining(held: Fraction) -> int:
    """Whole permits that are there: rounded down, never negative."""
    return max(0, math.floor(held))


def _policy(burst: int, rate: Fraction) -> dict[str, BareItemType]:
    """`q` is the burst, `w` the seconds that fill it from empty; slots have a unit instead of a window."""
    if not rate:
        return {"q": min(burst, LARGEST), "qu": "concurrent-requests"}
    return {"q": min(burst, LARGEST), "w": math.ceil(burst / rate)}


def _limit(burst: int, rate: Fraction, held: Fraction, wait_s: int | None) -> dict[str, BareItemType]:
    """`r` is what is left. A client that spreads `r` over `t` must not exceed the rate: `r / t <= rate`."""
    left = remaining(held)
    limit: dict[str, BareItemType] = {"r": min(left, LARGEST)}
    if left == 0 and wait_s is not None:
        limit["t"] = wait_s
    elif left == 0 and rate:
        limit["t"] = max(1, math.ceil((1 - held) / rate))
    elif held < burst and rate:
        limit["t"] = max(1, math.ceil(left / rate))
    return limit
