"""What a failed attempt means: its kind, and whether and when it should be repeated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

import anthropic
import httpx2

from scheduler.errors import Retry, UpstreamError


class Kind(StrEnum):
    """Why an attempt failed. The value is `UpstreamError.kind`, `JobFailed.kind` and the metric label.

    Repeated by the scheduler without being charged again: `rate_limited`, `overloaded`. Repeated as an
    attempt that is charged: `server_error`, `conflict`, `connection`, `broken_stream`, `truncated_stream`,
    `expired`, and the first two when they came inside a stream. Never repeated: all others; `timeout` only if
    asked.
    """

    RATE_LIMITED = "rate_limited"  # 429 that names a time to come back, or asks to
    SPEND_LIMIT = "spend_limit"  # 429 or 400 for a spending limit, or 402: no wait of minutes lifts it
    REFUSED = "refused"  # 429 that names no time, or anything with `x-should-retry: false`
    OVERLOADED = "overloaded"  # 529: everybody is affected
    SERVER_ERROR = "server_error"  # any other status from 500 on, and 408
    CONFLICT = "conflict"  # 409
    CONNECTION = "connection"  # no connection, or it was lost before the head of an answer
    TIMEOUT = "timeout"  # silence for too long, or no end in time: it may have run and been billed
    BROKEN_STREAM = "broken_stream"  # the connection was lost after the head of an answer
    TRUNCATED_STREAM = "truncated_stream"  # the answer ended properly, but before its end
    MALFORMED = "malformed"  # broken JSON, or JSON that is no message
    BAD_REQUEST = "bad_request"  # 400, 422 and other statuses below 500
    AUTHENTICATION = "authentication"  # 401, or no usable credentials
    PERMISSION = "permission"  # 403
    NOT_FOUND = "not_found"  # 404: mostly an unknown model
    TOO_LARGE = "too_large"  # 413
    EXPIRED = "expired"  # a request of a batch that had no turn in the batch's 24 hours
    UNSENDABLE = "unsendable"  # the client cannot send it: a base URL or a header (a key) that is none
    CANCELED = "canceled"  # a request of a batch that somebody cancelled upstream
    UNKNOWN = "unknown"  # an error of the SDK that says nothing


KIND_OF_STATUS = {
    401: Kind.AUTHENTICATION,
    402: Kind.SPEND_LIMIT,
    403: Kind.PERMISSION,
    404: Kind.NOT_FOUND,
    408: Kind.SERVER_ERROR,
    409: Kind.CONFLICT,
    413: Kind.TOO_LARGE,
    429: Kind.RATE_LIMITED,
    529: Kind.OVERLOADED,
}

# An error inside a stream comes with status 200; its type says which status it would have had.
STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}

REPEATED = frozenset(
    {
        Kind.RATE_LIMITED,
        Kind.OVERLOADED,
        Kind.SERVER_ERROR,
        Kind.CONFLICT,
        Kind.CONNECTION,
        Kind.BROKEN_STREAM,
        Kind.TRUNCATED_STREAM,
        Kind.EXPIRED,
    }
)

UNSENDABLE = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.InvalidURL)
"""What the HTTP library raises for a request that it cannot write: a repeat would raise it again."""

OWN_LIMIT_TEXT = "You have reached your specified"
NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)

TRIES_MAX = 30
"""Tries of one job, refused ones included: the bound where neither deadline nor policy sets one."""

BACKOFF_S = 0.5
BACKOFF_MAX_S = 30.0
RETRY_AFTER_MAX_S = 3600.0
"""An upstream that asks for more is not waited for."""


def failure(error: Exception, *, reading: bool = False) -> UpstreamError:
    """The `UpstreamError` for an exception of the SDK or of its HTTP library.

    `reading`: the head of an answer had arrived. No message text is kept, since it may quote the prompt.
    """
    if isinstance(error, anthropic.APIStatusError):
        return _of_status(error)
    kind = _kind_of(error, reading)
    return UpstreamError(kind, error_type=type(error.__cause__).__name__ if kind is Kind.UNSENDABLE else None)


def failed(kind: Kind, response: httpx2.Response) -> UpstreamError:
    """The `UpstreamError` for an answer of status 200 that is none."""
    return UpstreamError(kind, response.status_code, request_id=_name(response.headers.get("request-id")))


def headers_of(error: Exception) -> Mapping[str, str]:
    """The headers of the answer that an exception of the SDK is about; none if there was no answer."""
    return error.response.headers if isinstance(error, anthropic.APIStatusError) else {}


def errored(error_type: object) -> UpstreamError:
    """The `UpstreamError` for an error that came as a result of its own, named by its type only."""
    name = _name(error_type)
    status = STATUS_OF_TYPE.get(name or "", 500)
    return UpstreamError(_kind_of_status(status, None, None), None, name)


def is_refusal(error: UpstreamError) -> bool:
    """Whether the upstream refused before it did any work."""
    return error.status is not None and (400 <= error.status < 500 or error.status == 529)


def _kind_of(error: Exception, reading: bool) -> Kind:
    cause = error.__cause__ if isinstance(error, anthropic.APIConnectionError) else error
    if isinstance(error, anthropic.APIConnectionError) and isinstance(cause, UNSENDABLE):
        return Kind.UNSENDABLE
    if isinstance(cause, httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return Kind.CONNECTION  # the request was never sent
    if isinstance(error, anthropic.APITimeoutError | httpx2.TimeoutException):
        return Kind.TIMEOUT
    if isinstance(error, anthropic.APIConnectionError | anthropic.RetryableError):
        return Kind.CONNECTION
    if isinstance(error, httpx2.DecodingError | anthropic.APIResponseValidationError):
        return Kind.MALFORMED
    if isinstance(error, httpx2.HTTPError | httpx2.StreamError | OSError):
        return Kind.BROKEN_STREAM if reading else Kind.CONNECTION
    if isinstance(error, anthropic.AnthropicError):
        return Kind.AUTHENTICATION if isinstance(error, anthropic.CredentialsError) else Kind.UNKNOWN
    return Kind.MALFORMED


def _of_status(error: anthropic.APIStatusError) -> UpstreamError:
    headers = error.response.headers
    told = error.body.get("error") if isinstance(error.body, Mapping) else None
    told = told if isinstance(told, Mapping) else {}
    details = told.get("details")
    error_type = _name(told.get("type"))
    error_code = _name(details.get("error_code")) if isinstance(details, Mapping) else None
    status = error.status_code
    meant = status if status >= 400 else STATUS_OF_TYPE.get(error_type or "", 500)
    kind = _kind_of_status(meant, error_code, told.get("message"))
    if status >= 400 and kind in REPEATED and _says_never(status, headers):
        kind = Kind.REFUSED
    request_id = _name(headers.get("request-id"))
    return UpstreamError(kind, status, error_type, error_code, retry_after(headers), request_id)


def _kind_of_status(status: int, error_code: str | None, message: object) -> Kind:
    # The subclasses for these codes are missing in older versions of the SDK; the code itself is not.
    if (error_code or "").endswith("spend_limit_reached"):
        return Kind.SPEND_LIMIT
    if status == 400 and isinstance(message, str) and message.startswith(OWN_LIMIT_TEXT):
        return Kind.SPEND_LIMIT
    return KIND_OF_STATUS.get(status, Kind.SERVER_ERROR if status >= 500 else Kind.BAD_REQUEST)


def _says_never(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an upstream wants no retry, which a 429 also says by saying nothing."""
    asked = headers.get("x-should-retry")
    if status == 429 and "retry-after" not in headers and "retry-after-ms" not in headers:
        return asked != "true"
    return asked == "false"


def _name(value: object) -> str | None:
    """An identifier as the upstream sent it; None for anything that could be more than one."""
    return value if isinstance(value, str) and NAME.fullmatch(value) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until an upstream wants to be asked again: milliseconds, seconds or a date, if above 0."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds > 0:
            return seconds
    due, sent = _date(headers.get("retry-after")), _date(headers.get("date"))
    if due is None or sent is None or due < sent:
        return None
    # Both are the server's clock, so ours does not matter. Dates have lost their fractions: not too early.
    return (due - sent).total_seconds() + 1.0


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return None if date.tzinfo is None else date


def outcome(
    error: UpstreamError, tries: int, draw: Callable[[], float], *, retry_timeouts: bool = False
) -> Retry | None:
    """What a handler should raise after an attempt that failed before anything came of it; None for `error`.

    `tries`: how often the job has been tried, refused tries and this one included. `draw`: a random number
    from 0 up to 1, for the full jitter of the exponential backoff.
    """
    wait, kind = error.retry_after, error.kind
    if tries >= TRIES_MAX or (wait is not None and wait > RETRY_AFTER_MAX_S):
        return None
    if kind not in REPEATED and not (retry_timeouts and kind == Kind.TIMEOUT):
        return None
    backoff = backoff_after(tries, draw)
    if error.status not in (429, 529):
        return Retry(max(backoff, wait or 0.0))
    # A limit is everybody's, and so is a time that an overloaded upstream names: it stops the whole gate.
    pause = kind == Kind.RATE_LIMITED or wait is not None
    return Retry(backoff if wait is None else wait, pause_gate=pause, refused=True)


def backoff_after(tries: int, draw: Callable[[], float]) -> float:
    """Seconds to wait after so many failures in a row: exponential, with full jitter, 30 s at most."""
    return draw() * min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** (tries - 1))
