"""What the head of an answer, or a failure, tells the gate."""

import pytest

from scheduler import Answer, Signal, UpstreamError
from scheduler.upstreams.failures import Kind
from scheduler.upstreams.signals import accepted, refused

HEADERS = {
    "anthropic-ratelimit-requests-limit": "1000",
    "anthropic-ratelimit-requests-remaining": "999",
    "anthropic-ratelimit-input-tokens-limit": "2000000",
    "anthropic-ratelimit-output-tokens-remaining": "0",
    "anthropic-ratelimit-tokens-limit": "17",
    "anthropic-ratelimit-requests-reset": "2026-08-21T12:40:59Z",
}


def test_the_limits_that_an_answer_names() -> None:
    assert accepted(HEADERS) == Signal(
        Answer.ACCEPTED,
        None,
        {"requests": 1000, "input_tokens": 2_000_000},
        {"requests": 999, "output_tokens": 0},
    )


@pytest.mark.parametrize("text", ["", "-1", "1e3", "12.5", "many", "٣", "999999999999", "100000001"])
def test_what_is_no_sensible_number_is_left_out(text: str) -> None:
    assert accepted({"anthropic-ratelimit-requests-limit": text}) == Signal(Answer.ACCEPTED)


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (UpstreamError(Kind.RATE_LIMITED, 429, retry_after=7.0), Answer.RATE_LIMITED),
        (UpstreamError(Kind.RATE_LIMITED, 429, error_code="ramp_limit_exceeded"), Answer.RAMP),
        (UpstreamError(Kind.RATE_LIMITED, 200), Answer.RATE_LIMITED),
        (UpstreamError(Kind.SPEND_LIMIT, 400), Answer.SPEND_LIMIT),
        (UpstreamError(Kind.SPEND_LIMIT, 402), Answer.SPEND_LIMIT),
        (UpstreamError(Kind.REFUSED, 429), Answer.SPEND_LIMIT),
        (UpstreamError(Kind.OVERLOADED, 529), Answer.OVERLOADED),
        (UpstreamError(Kind.SERVER_ERROR, 503), Answer.OVERLOADED),
    ],
)
def test_what_a_failure_tells(error: UpstreamError, answer: Answer) -> None:
    signal = refused(error, HEADERS)
    assert signal is not None
    assert (signal.answer, signal.retry_after) == (answer, error.retry_after)
    assert signal.limits["requests"] == 1000


@pytest.mark.parametrize(
    "error",
    [
        UpstreamError(Kind.BAD_REQUEST, 400),
        UpstreamError(Kind.AUTHENTICATION, 401),
        UpstreamError(Kind.REFUSED, 503),
        UpstreamError(Kind.CONNECTION),
        UpstreamError(Kind.TIMEOUT),
        UpstreamError(Kind.MALFORMED, 200),
    ],
)
def test_what_tells_nothing_of_limits(error: UpstreamError) -> None:
    assert refused(error, HEADERS) is None
