"""Headers that tell a client when to come back and what is left."""

from __future__ import annotations

import math

from scheduler.http.fields import Levels, rate_limit_fields, remaining

RETRY_AFTER_MAX_S = 60
"""Nobody is sent away for longer than this: Claude Code gives up at 61 s, other SDKs sleep any number.
A longer wait is in the error's body, for people."""

NOISE_S = 1e-9
"""What a float of seconds may be too large by; time is kept in nanoseconds."""


def retry_after_seconds(seconds: float, most: int = RETRY_AFTER_MAX_S) -> int:
    """Whole seconds for `Retry-After` (RFC 9110, section 10.2.3): rounded up, at least 1, at most `most`.

    A client sleeps the number as it is: rounding to the nearest would send it back too early, and a 0 makes
    SDKs use a guess of their own.
    """
    if seconds >= most:
        return most
    return max(1, math.ceil(seconds - NOISE_S))


def retry_headers(seconds: float, most: int = RETRY_AFTER_MAX_S) -> dict[str, str]:
    """`Retry-After`, and `retry-after-ms`, which Anthropic's SDKs prefer; the latter is rounded up as well.

    Both end at `most` seconds. Below, callers with different waits are told different milliseconds.
    """
    milliseconds = most * 1000
    if seconds < most:
        milliseconds = max(1, math.ceil((seconds - NOISE_S) * 1000))
    return {"Retry-After": str(retry_after_seconds(seconds, most)), "retry-after-ms": str(milliseconds)}


def limit_headers(levels: Levels, wait_s: int | None = None, *, refused: bool = False) -> dict[str, str]:
    """`RateLimit`, `RateLimit-Policy`, `X-RateLimit-Limit` and `X-RateLimit-Remaining` of one tenant.

    `levels` is what `Scheduler.levels` returns, read after this request was charged. `wait_s`: whole seconds
    until the next request would start, if nothing is left; on a refusal the number in `Retry-After`. The
    X- headers count requests, whole and never negative; no `X-RateLimit-Reset` is sent, since vendors do not
    agree on what it means.
    """
    headers = rate_limit_fields(levels, wait_s, refused=refused)
    if "requests" in levels:
        burst, _, held = levels["requests"]
        headers["X-RateLimit-Limit"] = str(burst)
        headers["X-RateLimit-Remaining"] = "0" if refused else str(remaining(held))
    return headers
