"""What an answer says about the upstream's limits: its headers and its kind, as a `Signal` for the gate."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.core.quota import DIMENSIONS
from scheduler.core.signals import Answer, Signal
from scheduler.errors import UpstreamError
from scheduler.upstreams.failures import Kind

PREFIX = "anthropic-ratelimit-"

LIMIT_MAX = 100_000_000
"""Permits per minute; a header that names more is not believed."""

ANSWERS = {
    Kind.RATE_LIMITED: Answer.RATE_LIMITED,
    Kind.SPEND_LIMIT: Answer.SPEND_LIMIT,
    Kind.OVERLOADED: Answer.OVERLOADED,
    Kind.SERVER_ERROR: Answer.OVERLOADED,
}


def accepted(headers: Mapping[str, str]) -> Signal:
    """The signal of an answer that has begun well."""
    return Signal(Answer.ACCEPTED, None, _counts(headers, "limit"), _counts(headers, "remaining"))


def refused(error: UpstreamError, headers: Mapping[str, str]) -> Signal | None:
    """The signal of a failure; None where it tells nothing about the upstream's limits.

    A 429 that names no time and asks for no repeat is taken for a spending limit, which is the only one that
    Anthropic documents without a `retry-after`.
    """
    answer = ANSWERS.get(Kind(error.kind))
    if answer is None and error.kind == Kind.REFUSED and error.status == 429:
        answer = Answer.SPEND_LIMIT
    if answer is Answer.RATE_LIMITED and (error.error_code or "").startswith("ramp_limit"):
        answer = Answer.RAMP
    if answer is None:
        return None
    return Signal(answer, error.retry_after, _counts(headers, "limit"), _counts(headers, "remaining"))


def _counts(headers: Mapping[str, str], what: str) -> dict[str, int]:
    """The whole numbers of one kind of header, by dimension; what is no such number is left out."""
    counts = {}
    for name in DIMENSIONS:
        text = headers.get(f"{PREFIX}{name.replace('_', '-')}-{what}", "")
        if text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) <= LIMIT_MAX:
            counts[name] = int(text)
    return counts
