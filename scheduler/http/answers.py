"""What a client is told instead of a response: status, headers and a body for each of our errors.

The body is Anthropic's envelope, so that SDK clients find `error.type`; `problem_json` makes it a problem
document (RFC 9457) for endpoints that are not Anthropic's. Neither names the tenant.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from starlette.responses import Response

from scheduler.errors import (
    DeadlineExceeded,
    ErrRateLimited,
    JobFailed,
    QuotaExceeded,
    SchedulerClosed,
    UpstreamError,
    seconds_text,
)
from scheduler.http.fields import Levels
from scheduler.http.headers import RETRY_AFTER_MAX_S, limit_headers, retry_after_seconds, retry_headers

if TYPE_CHECKING:
    from starlette.requests import Request

    from scheduler.runtime.scheduler import Scheduler

T = TypeVar("T")

LEISURE_S = 0.1
"""Seconds for which a response waits to be told what is left; after that it says nothing of it."""

CLOSED_RETRY_AFTER_S = 5.0
"""A closing process is replaced in about this time."""

PROBLEM = "https://iana.org/assignments/http-problem-types#quota-exceeded"

CODES = {
    "strict": "tenant_rate_limited",
    "queue_full": "tenant_queue_full",
    "max_wait": "queue_max_wait",
    "deadline": "queue_deadline",
    "gate": "gate_rate_limited",
    "pause": "gate_paused",
    "slot": "slots_taken",
    "max_waiting": "queue_full",
    "spend_limit": "upstream_spend_limit",
    "store_down": "store_down",
}
"""`error_code` by the reason of a refusal."""


ANSWERED = (ErrRateLimited, QuotaExceeded, DeadlineExceeded, SchedulerClosed, JobFailed, UpstreamError)
"""The errors that have an answer. Anything else is a fault of the application and belongs in its log."""


class Kind(NamedTuple):
    """A row of the table in `docs/http.md`."""

    status: int
    type: str
    code: str
    message: str
    retry_after: float | None = None
    final: bool = False
    """Whether no repeat mends it although its status is one that SDKs repeat."""


ANONYMOUS = Kind(401, "authentication_error", "unknown_credential", "no tenant for this request")
UNKNOWN = Kind(403, "permission_error", "unknown_tenant", "this tenant has no quota")

OVERLOADED = Kind(529, "overloaded_error", "upstream_overloaded", "the model is overloaded")
SPENT = Kind(
    429, "rate_limit_error", CODES["spend_limit"], "the upstream's spending limit was reached", final=True
)
FAILED = Kind(502, "api_error", "upstream_failed", "the model gave no usable answer")
REFUSED = FAILED._replace(final=True)

UPSTREAM = {
    "rate_limited": OVERLOADED,
    "overloaded": OVERLOADED,
    "spend_limit": SPENT,
    "refused": REFUSED,
    "bad_request": Kind(
        400, "invalid_request_error", "upstream_bad_request", "the model refused the request"
    ),
    "too_large": Kind(413, "request_too_large", "upstream_too_large", "too large for the model"),
    # What is wrong with the service's own key or model is no fault of the client's, and will be tomorrow.
    "authentication": REFUSED,
    "permission": REFUSED,
    "not_found": REFUSED,
}
"""By the kind of an `UpstreamError`, or of the last failure of a `JobFailed`; `FAILED` for any other."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response: `status`, `headers` by name, `body`."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def raw_headers(self, http_version: str = "1.1") -> list[tuple[bytes, bytes]]:
        """The headers as ASGI wants them. `Connection` is not allowed above HTTP/1.1."""
        return [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in self.headers.items()
            if name != "Connection" or http_version.startswith("1")
        ]


def answer(
    error: Exception,
    levels: Levels | None = None,
    *,
    retry_after_max: int = RETRY_AFTER_MAX_S,
    sdk_retries: bool = True,
    problem_json: bool = False,
) -> Answer:
    """The response for one of our errors (`ANSWERED`). Raises TypeError for any other exception.

    `levels`: the tenant's buckets, for the headers of a 429. `retry_after_max`: most whole seconds in
    `Retry-After`; the exact wait is in the body. `sdk_retries` False asks SDKs not to repeat a 429; they are
    always asked so where no repeat helps, and when the wait is longer than the header can say, since they
    would come too early.
    """
    kind = _kind_of(error)
    wait = kind.retry_after or 0.0
    headers: dict[str, str] = {}
    if kind.status == 429 and wait:
        wait_s = retry_after_seconds(wait, retry_after_max)
        headers = limit_headers(levels or {}, wait_s, refused=True)
    if kind.final or wait > retry_after_max or (kind.status == 429 and not sdk_retries):
        headers["x-should-retry"] = "false"
    if isinstance(error, SchedulerClosed):
        headers["Connection"] = "close"
    return build(kind, getattr(error, "reason", None), headers, retry_after_max, problem_json)


def build(
    kind: Kind,
    reason: str | None = None,
    headers: Mapping[str, str] | None = None,
    retry_after_max: int = RETRY_AFTER_MAX_S,
    problem_json: bool = False,
) -> Answer:
    """Put a response together. Nothing that says no may be stored by a cache (RFC 6585, section 4)."""
    details: dict[str, Any] = {"error_code": kind.code}
    if reason is not None:
        details["reason"] = str(reason)
    if kind.retry_after is not None:
        details["retry_after_seconds"] = kind.retry_after
    envelope = {"type": kind.type, "message": kind.message, "details": details}
    content = _problem(kind, reason, details) if problem_json else {"type": "error", "error": envelope}
    body = json.dumps(content).encode()
    found = {
        "Content-Type": "application/problem+json" if problem_json else "application/json",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        **({} if kind.retry_after is None else retry_headers(kind.retry_after, retry_after_max)),
        **(headers or {}),
    }
    if kind.status == 401:
        found["WWW-Authenticate"] = "Bearer"
    return Answer(kind.status, found, body)


def _problem(kind: Kind, reason: str | None, details: Mapping[str, Any]) -> dict[str, Any]:
    """A problem document; a shared gate or the whole line is no policy of the tenant's."""
    problem: dict[str, Any] = {"type": "about:blank", "title": kind.message, "status": kind.status, **details}
    if (
        kind.status == 429
        and reason is not None
        and reason not in {"gate", "pause", "max_waiting", "spend_limit"}
    ):
        problem["type"] = PROBLEM
        problem["violated-policies"] = ["slots" if reason == "slot" else "tenant"]
    return problem


def _kind_of(error: Exception) -> Kind:
    match error:
        case ErrRateLimited(reason="store_down", retry_after=wait):
            return Kind(503, "api_error", CODES["store_down"], "out of order for the moment", wait)
        case ErrRateLimited(reason=reason, retry_after=wait):
            text = f"rate limited ({reason}): retry after {seconds_text(wait)}"
            return Kind(429, "rate_limit_error", CODES.get(reason, "tenant_rate_limited"), text, wait)
        case QuotaExceeded(limit=limit, cost=cost, burst=burst):
            text = f"a cost of {cost} can never fit the limit of {burst} {limit}"
            return Kind(413, "request_too_large", "quota_exceeded", text)
        case SchedulerClosed():
            return Kind(503, "api_error", "draining", "shutting down", CLOSED_RETRY_AFTER_S)
        case DeadlineExceeded(which=which, seconds=seconds):
            text = f"{which} of {seconds_text(seconds)} passed"
            return Kind(504, "timeout_error", "deadline_exceeded", text)
        case UpstreamError(kind="refused", status=429):
            return SPENT  # the gate, too, takes a 429 that names no time for a spending limit
        case UpstreamError(kind=kind, retry_after=after):
            return UPSTREAM.get(kind, FAILED)._replace(retry_after=after)
        case JobFailed(kind=kind):
            return UPSTREAM.get(kind, FAILED)
    names = ", ".join(kind.__name__ for kind in ANSWERED)
    raise TypeError(f"error: must be one of {names}, got {type(error).__name__}")


async def levels_for(scheduler: Scheduler, error: Exception) -> Levels:
    """The buckets of the tenant that an error names; none if it has no quota here, or if nobody tells."""
    nothing: Levels = {}
    return await at_leisure(scheduler.current_levels(getattr(error, "tenant", "")), nothing)


async def at_leisure(asking: Awaitable[T], otherwise: T) -> T:
    """What only adorns a response: not waited for longer than `LEISURE_S`, and whatever it raises.

    Over a store the levels are in a database, which may be slow or in trouble when a response is ready.
    """
    try:
        async with asyncio.timeout(LEISURE_S):
            return await asking
    except Exception:  # noqa: BLE001 - nothing that goes wrong with it is worth a response
        return otherwise


def exception_handler(
    scheduler: Scheduler,
    *,
    retry_after_max: int = RETRY_AFTER_MAX_S,
    sdk_retries: bool = True,
    problem_json: bool = False,
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """What Starlette and FastAPI do with our errors, for routes that `submit` without the middleware.

    ``app.add_exception_handler(SchedulerError, exception_handler(scheduler))``. The options are those of
    `answer`; an error that it does not know is raised again.
    """

    async def handle(request: Request, error: Exception) -> Response:
        if not isinstance(error, ANSWERED):
            raise error
        found = answer(
            error,
            await levels_for(scheduler, error),
            retry_after_max=retry_after_max,
            sdk_retries=sdk_retries,
            problem_json=problem_json,
        )
        response = Response(status_code=found.status)
        response.body = found.body
        response.raw_headers = found.raw_headers(request.scope.get("http_version", "1.1"))
        return response

    return handle
