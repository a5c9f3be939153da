"""Status, headers and body of every error."""

import json
from fractions import Fraction
from typing import Any

import pytest

from scheduler import (
    DeadlineExceeded,
    ErrRateLimited,
    JobFailed,
    QuotaExceeded,
    SchedulerClosed,
    SchedulerError,
    UpstreamError,
)
from scheduler.core.policy import Reason
from scheduler.http import answer
from scheduler.http.answers import CODES
from scheduler.upstreams.claude import Kind

ROWS = [
    (ErrRateLimited("acme", "strict", 0.5), 429, "rate_limit_error", "tenant_rate_limited", "1"),
    (ErrRateLimited("acme", "queue_full", 90.25), 429, "rate_limit_error", "tenant_queue_full", "60"),
    (ErrRateLimited("acme", "deadline", 7.0), 429, "rate_limit_error", "queue_deadline", "7"),
    (QuotaExceeded("acme", "input_tokens", 900, 500), 413, "request_too_large", "quota_exceeded", None),
    (DeadlineExceeded("acme", "timeout", 3.0), 504, "timeout_error", "deadline_exceeded", None),
    (SchedulerClosed("closed"), 503, "api_error", "draining", "5"),
    (ErrRateLimited("acme", "store_down", 0.4), 503, "api_error", "store_down", "1"),
    (JobFailed("acme", "broken_stream", 5), 502, "api_error", "upstream_failed", None),
    (UpstreamError("broken_stream", 500), 502, "api_error", "upstream_failed", None),
    (UpstreamError("overloaded", 529), 529, "overloaded_error", "upstream_overloaded", None),
    (
        UpstreamError("rate_limited", 429, retry_after=3.2),
        529,
        "overloaded_error",
        "upstream_overloaded",
        "4",
    ),
    (UpstreamError("overloaded", 200), 529, "overloaded_error", "upstream_overloaded", None),
    (UpstreamError("spend_limit", 400), 429, "rate_limit_error", "upstream_spend_limit", None),
    (UpstreamError("refused", 429), 429, "rate_limit_error", "upstream_spend_limit", None),
    (UpstreamError("refused", 500), 502, "api_error", "upstream_failed", None),
    (UpstreamError("bad_request", 400), 400, "invalid_request_error", "upstream_bad_request", None),
    (UpstreamError("too_large", 413), 413, "request_too_large", "upstream_too_large", None),
    (UpstreamError("authentication", 401), 502, "api_error", "upstream_failed", None),
    (JobFailed("acme", "too_large", 1), 413, "request_too_large", "upstream_too_large", None),
    (JobFailed("acme", "a kind of the handler's own", 1), 502, "api_error", "upstream_failed", None),
]

IN_VAIN = {
    Kind.SPEND_LIMIT,
    Kind.REFUSED,
    Kind.BAD_REQUEST,
    Kind.AUTHENTICATION,
    Kind.PERMISSION,
    Kind.NOT_FOUND,
    Kind.TOO_LARGE,
}


@pytest.mark.parametrize(("error", "status", "kind", "code", "after"), ROWS)
def test_every_error_has_an_answer(
    error: SchedulerError, status: int, kind: str, code: str, after: str | None
) -> None:
    found = answer(error)
    body = json.loads(found.body)
    assert found.status == status
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["details"]["error_code"] == code
    assert found.headers.get("Retry-After") == after
    assert ("retry-after-ms" in found.headers) == (after is not None)
    assert found.headers["Cache-Control"] == "no-store"
    assert found.headers["Content-Length"] == str(len(found.body))
    assert b"acme" not in found.body, "a tenant's name may be a secret"


def test_the_body_has_the_exact_wait() -> None:
    body = json.loads(answer(ErrRateLimited("acme", "queue_full", 90.125)).body)
    assert body["error"] == {
        "type": "rate_limit_error",
        "message": "rate limited (queue_full): retry after 90.125s",
        "details": {"error_code": "tenant_queue_full", "reason": "queue_full", "retry_after_seconds": 90.125},
    }


def test_every_reason_has_a_code() -> None:
    assert set(CODES) == {reason.value for reason in Reason} - {"never"}
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize(
    ("wait", "options", "said"),
    [
        (60.0, {}, None),
        (60.1, {}, "false"),
        (60.1, {"retry_after_max": 100}, None),
        (1.0, {"sdk_retries": False}, "false"),
    ],
)
def test_sdks_are_asked_not_to_repeat_what_they_would_repeat_in_vain(
    wait: float, options: dict[str, Any], said: str | None
) -> None:
    found = answer(ErrRateLimited("acme", "max_wait", wait), **options)
    assert found.headers.get("x-should-retry") == said


REPEATED = (408, 409, 429)
"""What SDKs repeat, besides all statuses from 500 on."""


@pytest.mark.parametrize("kind", Kind)
def test_sdks_repeat_a_failure_of_the_upstream_only_if_that_can_help(kind: Kind) -> None:
    """A repeat of what the upstream will refuse again is asked for neither by status nor by silence."""
    for error in (UpstreamError(kind), JobFailed("acme", kind, 1)):
        found = answer(error)
        repeats = found.status in REPEATED or found.status >= 500
        assert (repeats and "x-should-retry" not in found.headers) == (kind not in IN_VAIN)


@pytest.mark.parametrize(("wait", "said"), [(60.0, None), (1800.0, "false")])
def test_an_upstream_that_names_a_time_beyond_the_cap(wait: float, said: str | None) -> None:
    found = answer(UpstreamError("rate_limited", 429, retry_after=wait))
    assert (found.status, found.headers["Retry-After"]) == (529, "60")
    assert found.headers.get("x-should-retry") == said
    assert json.loads(found.body)["error"]["details"]["retry_after_seconds"] == wait


def test_a_spending_limit_of_the_upstream_says_nothing_of_the_tenant_s() -> None:
    levels = {"requests": (5, Fraction(2), Fraction(4))}
    found = answer(UpstreamError("spend_limit", 429), levels, problem_json=True)
    assert "RateLimit" not in found.headers
    assert json.loads(found.body)["type"] == "about:blank"


@pytest.mark.parametrize(
    ("reason", "kind", "violated"),
    [
        ("strict", "https://iana.org/assignments/http-problem-types#quota-exceeded", ["tenant"]),
        ("slot", "https://iana.org/assignments/http-problem-types#quota-exceeded", ["slots"]),
        ("gate", "about:blank", None),
    ],
)
def test_problem_documents(reason: str, kind: str, violated: list[str] | None) -> None:
    found = answer(ErrRateLimited("acme", reason, 2.5), problem_json=True)
    body = json.loads(found.body)
    assert found.headers["Content-Type"] == "application/problem+json"
    assert (body["type"], body["status"], body["retry_after_seconds"]) == (kind, 429, 2.5)
    assert body.get("violated-policies") == violated


def test_connection_is_closed_by_http_1_only() -> None:
    found = answer(SchedulerClosed("closed"))
    assert (b"connection", b"close") in found.raw_headers("1.1")
    assert b"connection" not in dict(found.raw_headers("2"))


@pytest.mark.parametrize("error", [RuntimeError("no"), SchedulerError("no")])
def test_other_exceptions_have_none(error: Exception) -> None:
    with pytest.raises(TypeError, match="error: must be one of ErrRateLimited, "):
        answer(error)
