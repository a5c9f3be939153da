"""Errors as the SDK raises them, and the headers it gives access to."""

from typing import Any

import anthropic
import httpx2
import pytest

from scheduler.testing import Fault, SimulatedClaude, effects
from scheduler.testing.claude.effects import Effect
from tests.testing.claude_client import asked, call, collect, create, quick, sdk

CASES: list[tuple[Effect, type[anthropic.APIStatusError], int, str, str | None]] = [
    (effects.ErrorStatus(status=400), anthropic.BadRequestError, 400, "invalid_request_error", None),
    (effects.ErrorStatus(status=401), anthropic.AuthenticationError, 401, "authentication_error", None),
    (effects.ErrorStatus(status=402), anthropic.PaymentRequiredError, 402, "billing_error", None),
    (effects.ErrorStatus(status=403), anthropic.PermissionDeniedError, 403, "permission_error", None),
    (effects.ErrorStatus(status=404), anthropic.NotFoundError, 404, "not_found_error", None),
    (effects.ErrorStatus(status=408), anthropic.RequestTimeoutError, 408, "timeout_error", None),
    (effects.ErrorStatus(status=409), anthropic.ConflictError, 409, "conflict_error", None),
    (effects.ErrorStatus(status=413), anthropic.ContentTooLargeError, 413, "request_too_large", None),
    (effects.ErrorStatus(status=422), anthropic.UnprocessableEntityError, 422, "invalid_request_error", None),
    (effects.RateLimited(), anthropic.RateLimitError, 429, "rate_limit_error", None),
    (effects.Ramp(), anthropic.RampLimitExceededError, 429, "rate_limit_error", "ramp_limit_exceeded"),
    (
        effects.SpendCap(),
        anthropic.EnforcedSpendLimitReachedError, 429, "rate_limit_error", "enforced_spend_limit_reached",
    ),
    (
        effects.SpendCap(error_code="contract_spend_limit_reached"),
        anthropic.ContractSpendLimitReachedError, 429, "rate_limit_error", "contract_spend_limit_reached",
    ),
    (
        effects.RateLimited(error_code="tenant_queue_full"),
        anthropic.RateLimitError, 429, "rate_limit_error", "tenant_queue_full",
    ),
    (effects.OwnSpendLimit(), anthropic.BadRequestError, 400, "invalid_request_error", None),
    (effects.ErrorStatus(status=500), anthropic.InternalServerError, 500, "api_error", None),
    (effects.ErrorStatus(status=502), anthropic.InternalServerError, 502, "api_error", None),
    (effects.ErrorStatus(status=503), anthropic.ServiceUnavailableError, 503, "api_error", None),
    (effects.ErrorStatus(status=504), anthropic.GatewayTimeoutError, 504, "timeout_error", None),
    (effects.Overloaded(), anthropic.OverloadedError, 529, "overloaded_error", None),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("effect", "raised", "status", "kind", "code"), CASES)
async def test_every_error_is_raised_as_its_class(
    effect: Effect,
    raised: type[anthropic.APIStatusError],
    status: int,
    kind: str,
    code: str | None,
    stream: bool,
) -> None:
    async with SimulatedClaude(quick(Fault(effect))) as claude, sdk(claude) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**asked(stream=stream))
        attempt = claude.requests[0]
    error = caught.value
    assert type(error) is raised
    assert (error.status_code, error.type, error.error_code) == (status, kind, code)
    assert error.request_id == attempt.request_id
    assert isinstance(error.body, dict)
    assert error.body["request_id"] == attempt.request_id
    assert (attempt.decision, attempt.reason, attempt.fault, attempt.status) == (
        "fault",
        effect.kind,
        effect.kind,
        status,
    )


async def test_spend_caps_have_no_retry_after_and_say_so_by_their_code_only() -> None:
    async with SimulatedClaude(quick(Fault(effects.SpendCap()))) as claude, sdk(claude) as client:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await create(client)
    assert "retry-after" not in caught.value.response.headers
    assert "usage limits" in str(caught.value)


async def test_the_own_limit_starts_with_the_words_that_tell_it_apart() -> None:
    async with SimulatedClaude(quick(Fault(effects.OwnSpendLimit()))) as claude:
        response = await call(claude, "/v1/messages", asked())
    assert response.json()["error"]["message"].startswith("You have reached your specified")


@pytest.mark.parametrize(
    ("effect", "headers"),
    [
        (effects.RateLimited(retry_after=7), {"retry-after": "7"}),
        (effects.RateLimited(retry_after=0), {"retry-after": "0"}),
        (effects.RateLimited(retry_after=0.25), {"retry-after": "0.25"}),
        (effects.RateLimited(retry_after="soon"), {"retry-after": "soon"}),
        (effects.RateLimited(retry_after_ms=300), {"retry-after": "1", "retry-after-ms": "300"}),
        (effects.RateLimited(should_retry=False), {"x-should-retry": "false"}),
        (effects.ShouldRetry(status=400, should_retry=True), {"x-should-retry": "true"}),
    ],
)
async def test_waits_are_written_as_they_are_given(effect: Effect, headers: dict[str, str]) -> None:
    async with SimulatedClaude(quick(Fault(effect))) as claude:
        response = await call(claude, "/v1/messages", asked())
    assert {name: response.headers.get(name) for name in headers} == headers


async def test_a_date_is_an_http_date() -> None:
    async with SimulatedClaude(quick(Fault(effects.RateLimited(retry_after_date_s=30)))) as claude:
        response = await call(claude, "/v1/messages", asked())
    assert response.headers["retry-after"].endswith(" GMT")


async def test_headers_are_within_reach_of_every_kind_of_call() -> None:
    async with SimulatedClaude(quick()) as claude, sdk(claude) as client:
        raw = await client.messages.with_raw_response.create(**asked())
        parsed = await raw.parse()
        stream = await client.messages.create(**asked(stream=True))
        events = [event async for event in stream]
        first, second = claude.requests
    assert raw.headers["request-id"] == first.request_id == parsed._request_id
    assert raw.retries_taken == 0
    assert stream.response.headers["request-id"] == second.request_id
    assert events


async def test_middleware_sees_every_attempt() -> None:
    seen: list[tuple[int, int]] = []

    async def watch(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        seen.append((request.retries_taken, response.status_code))
        return response

    fault = Fault(effects.RateLimited(retry_after_ms=1), times=1)
    async with (
        SimulatedClaude(quick(fault)) as claude,
        sdk(claude, max_retries=1, middleware=[watch]) as client,
    ):
        await create(client)
    assert seen == [(0, 429), (1, 200)]


async def test_before_a_response_a_broken_connection_is_a_connection_error() -> None:
    faults = Fault(effects.ResetBeforeHead(), times=1), Fault(effects.CloseBeforeHead())
    async with SimulatedClaude(quick(*faults)) as claude, sdk(claude) as client:
        for _ in range(2):
            with pytest.raises(anthropic.APIConnectionError) as caught:
                await create(client)
            assert isinstance(caught.value.__cause__, httpx2.TransportError)
        assert [attempt.status for attempt in claude.requests] == [None, None]
        assert [attempt.disconnect_ns for attempt in claude.requests] == [None, None]


async def test_a_late_head_is_a_timeout() -> None:
    async with SimulatedClaude(quick(Fault(effects.SlowHeaders(60)))) as claude:
        async with sdk(claude, timeout=0.1) as client:
            with pytest.raises(anthropic.APITimeoutError):
                await create(client)
            with pytest.raises(anthropic.APITimeoutError):
                await collect(client)
        assert len(claude.requests) == 2
