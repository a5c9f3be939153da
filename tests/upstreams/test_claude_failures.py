"""Whatever goes wrong upstream is one `UpstreamError`, after one attempt, and says nothing it should not."""

import asyncio
import pickle
import traceback
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic

from scheduler import UpstreamError
from scheduler.testing.claude.damage import (
    CloseMidStream,
    CutBody,
    ErrorEvent,
    LostLastEvent,
    MalformedJson,
    ResetMidStream,
    SlowLoris,
    Stall,
    Truncate,
    WrongShape,
)
from scheduler.testing.claude.effects import (
    CloseBeforeHead,
    Effect,
    ErrorStatus,
    Overloaded,
    OwnSpendLimit,
    Ramp,
    RateLimited,
    ResetBeforeHead,
    ShouldRetry,
    SlowHeaders,
    SpendCap,
)
from scheduler.upstreams.claude import Kind, outcome
from tests.upstreams.calls import SECRET, complete, connected, quick


def limited(**fields: Any) -> RateLimited:
    return RateLimited(**{"retry_after": None, **fields})


# Effect, kind, status, seconds until a retry, whether the retry is free, whether it stops the gate. "-" for
# the seconds: no retry; None: some backoff.
STATUSES: list[tuple[Effect, Kind, int, Any, bool, bool]] = [
    (limited(retry_after=3), Kind.RATE_LIMITED, 429, 3.0, True, True),
    (limited(retry_after="0.25"), Kind.RATE_LIMITED, 429, 0.25, True, True),
    (limited(retry_after=9, retry_after_ms=250), Kind.RATE_LIMITED, 429, 0.25, True, True),
    (limited(retry_after_ms=250), Kind.RATE_LIMITED, 429, 0.25, True, True),
    (limited(retry_after=0), Kind.RATE_LIMITED, 429, None, True, True),
    (limited(retry_after="soon"), Kind.RATE_LIMITED, 429, None, True, True),
    (limited(should_retry=True), Kind.RATE_LIMITED, 429, None, True, True),
    (limited(), Kind.REFUSED, 429, "-", False, False),
    (limited(retry_after=90_000), Kind.RATE_LIMITED, 429, "-", False, False),
    (ShouldRetry(retry_after=1), Kind.REFUSED, 429, "-", False, False),
    (Ramp(), Kind.RATE_LIMITED, 429, 1.0, True, True),
    (SpendCap(), Kind.SPEND_LIMIT, 429, "-", False, False),
    (SpendCap(error_code="contract_spend_limit_reached"), Kind.SPEND_LIMIT, 429, "-", False, False),
    (SpendCap(retry_after=1, should_retry=True), Kind.SPEND_LIMIT, 429, "-", False, False),
    (OwnSpendLimit(), Kind.SPEND_LIMIT, 400, "-", False, False),
    (Overloaded(), Kind.OVERLOADED, 529, None, True, False),
    (Overloaded(retry_after=7), Kind.OVERLOADED, 529, 7.0, True, True),
    (Overloaded(should_retry=False), Kind.REFUSED, 529, "-", False, False),
    (ErrorStatus(status=400), Kind.BAD_REQUEST, 400, "-", False, False),
    (ErrorStatus(status=401), Kind.AUTHENTICATION, 401, "-", False, False),
    (ErrorStatus(status=402), Kind.SPEND_LIMIT, 402, "-", False, False),
    (ErrorStatus(status=403), Kind.PERMISSION, 403, "-", False, False),
    (ErrorStatus(status=404), Kind.NOT_FOUND, 404, "-", False, False),
    (ErrorStatus(status=408), Kind.SERVER_ERROR, 408, None, False, False),
    (ErrorStatus(status=409), Kind.CONFLICT, 409, None, False, False),
    (ErrorStatus(status=413), Kind.TOO_LARGE, 413, "-", False, False),
    (ErrorStatus(status=418), Kind.BAD_REQUEST, 418, "-", False, False),
    (ErrorStatus(status=422), Kind.BAD_REQUEST, 422, "-", False, False),
    (ErrorStatus(status=500), Kind.SERVER_ERROR, 500, None, False, False),
    (ErrorStatus(status=500, should_retry=False), Kind.REFUSED, 500, "-", False, False),
    (ErrorStatus(status=502), Kind.SERVER_ERROR, 502, None, False, False),
    (ErrorStatus(status=503, retry_after=2), Kind.SERVER_ERROR, 503, 2.0, False, False),
    (ErrorStatus(status=504), Kind.SERVER_ERROR, 504, None, False, False),
]

STREAMS: list[tuple[Effect, Kind, int | None]] = [
    (ResetBeforeHead(), Kind.CONNECTION, None),
    (CloseBeforeHead(), Kind.CONNECTION, None),
    (ResetMidStream(after_chunks=None), Kind.BROKEN_STREAM, None),
    (ResetMidStream(after_chunks=1), Kind.BROKEN_STREAM, None),
    (CloseMidStream(after_chunks=1), Kind.BROKEN_STREAM, None),
    (CutBody(), Kind.BROKEN_STREAM, None),
    (Truncate(after_chunks=None), Kind.TRUNCATED_STREAM, 200),
    (Truncate(after_chunks=0), Kind.TRUNCATED_STREAM, 200),
    (Truncate(after_chunks=1), Kind.TRUNCATED_STREAM, 200),
    (LostLastEvent(), Kind.TRUNCATED_STREAM, 200),
    (MalformedJson(after_chunks=None), Kind.MALFORMED, None),
    (MalformedJson(after_chunks=1), Kind.MALFORMED, None),
    (WrongShape(), Kind.MALFORMED, 200),
    (ErrorEvent(type="overloaded_error", after_chunks=None), Kind.OVERLOADED, 200),
    (ErrorEvent(type="overloaded_error", after_chunks=1), Kind.OVERLOADED, 200),
    (ErrorEvent(type="rate_limit_error", after_chunks=1), Kind.RATE_LIMITED, 200),
    (ErrorEvent(type="api_error", after_chunks=1), Kind.SERVER_ERROR, 200),
    (ErrorEvent(type="timeout_error", after_chunks=1), Kind.SERVER_ERROR, 200),
    (ErrorEvent(type="invalid_request_error", after_chunks=None), Kind.BAD_REQUEST, 200),
    (ErrorEvent(type="authentication_error", after_chunks=None), Kind.AUTHENTICATION, 200),
    (ErrorEvent(type="billing_error", after_chunks=None), Kind.SPEND_LIMIT, 200),
    (ErrorEvent(type="permission_error", after_chunks=None), Kind.PERMISSION, 200),
    (ErrorEvent(type="not_found_error", after_chunks=None), Kind.NOT_FOUND, 200),
    (ErrorEvent(type="request_too_large", after_chunks=None), Kind.TOO_LARGE, 200),
    (ErrorEvent(type="something_new", after_chunks=None), Kind.SERVER_ERROR, 200),
]


def named(value: object) -> str | None:
    return repr(value) if isinstance(value, Effect) else None


def half() -> float:
    return 0.5


async def failing(effect: Effect, **options: Any) -> UpstreamError:
    """Make a call that fails, and check what holds for every failure."""
    async with connected(quick(effect), **options) as (claude, client):
        with pytest.raises(UpstreamError) as caught:
            await complete(client)
        assert [attempt.retry_count for attempt in claude.requests] == [0]
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert SECRET not in "".join(traceback.format_exception(error))
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
    return error


@pytest.mark.parametrize(("effect", "kind", "status", "after", "free", "pause"), STATUSES, ids=named)
async def test_a_status_is_a_kind_and_an_outcome(
    effect: ErrorStatus, kind: Kind, status: int, after: Any, free: bool, pause: bool
) -> None:
    error = await failing(effect)
    assert (error.kind, error.status, error.error_code) == (kind, status, effect.error_code)
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    assert effect.message not in str(error)
    retry = outcome(error, 1, half)
    if after == "-":
        assert retry is None
        return
    assert retry is not None
    assert (retry.refused, retry.pause_gate) == (free, pause)
    assert retry.after == (0.25 if after is None else after)


@pytest.mark.parametrize(("effect", "kind", "status"), STREAMS, ids=named)
async def test_a_broken_answer_is_a_kind(effect: Effect, kind: Kind, status: int | None) -> None:
    error = await failing(effect)
    assert (error.kind, error.status) == (kind, status)
    if status is not None:
        assert error.request_id is not None
    retry = outcome(error, 1, half)
    repeated = {
        Kind.CONNECTION, Kind.BROKEN_STREAM, Kind.TRUNCATED_STREAM, Kind.OVERLOADED, Kind.RATE_LIMITED,
        Kind.SERVER_ERROR,
    }  # fmt: skip
    assert (retry is not None) == (kind in repeated)
    # Work was done or may have been: it is an attempt, which is paid again.
    assert retry is None or not (retry.refused or retry.pause_gate)


@pytest.mark.parametrize(
    "effect",
    [SlowHeaders(seconds=5), Stall(after_chunks=None, seconds=5), Stall(after_chunks=1, seconds=5)],
    ids=named,
)
async def test_silence_is_a_timeout_that_is_repeated_only_if_asked(effect: Effect) -> None:
    error = await failing(effect, timeout=0.1)
    assert (error.kind, error.status) == (Kind.TIMEOUT, None)
    assert outcome(error, 1, half) is None
    retry = outcome(error, 1, half, retry_timeouts=True)
    assert retry is not None
    assert not retry.refused


async def test_a_date_counts_from_the_servers_own_clock() -> None:
    from scheduler.upstreams.failures import retry_after

    sent = "Tue, 24 Nov 2026 12:00:00 GMT"
    assert retry_after({"retry-after": "Tue, 24 Nov 2026 12:00:05 GMT", "date": sent}) == 6.0
    assert retry_after({"retry-after": "Tue, 24 Nov 2026 11:00:00 GMT", "date": sent}) is None
    assert retry_after({"retry-after": "Tue, 24 Nov 2026 12:00:05 GMT"}) is None
    assert retry_after({"retry-after": "Tue, 99 Nov 2026", "date": sent}) is None
    assert retry_after({"retry-after": "Mon, 24 Nov 99999999999 10:00:00 GMT", "date": sent}) is None
    assert retry_after({"retry-after": sent, "date": "Mon, 24 Nov 2026 10:00:00 +99999999999999"}) is None
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({"retry-after-ms": "-3", "retry-after": "2"}) == 2.0


async def test_nobody_listens() -> None:
    async with AsyncAnthropic(api_key="sk-test", base_url="http://127.0.0.1:9") as client:
        with pytest.raises(UpstreamError) as caught:
            await complete(client)
    assert caught.value.kind == Kind.CONNECTION


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"base_url": "htp://claude.test"}, "UnsupportedProtocol"),
        ({"api_key": f"{SECRET}\n"}, "LocalProtocolError"),
        ({"default_headers": {"x": f"{SECRET}\nb"}}, "LocalProtocolError"),
    ],
)
async def test_what_the_client_cannot_send_is_not_taken_for_a_lost_connection(options: Any, why: str) -> None:
    async with connected(quick(), **options) as (_, client):
        with pytest.raises(UpstreamError) as caught:
            await complete(client)
    error = caught.value
    assert (error.kind, error.error_type, error.status) == (Kind.UNSENDABLE, why, None)
    assert SECRET not in "".join(traceback.format_exception(error))
    assert outcome(error, 1, half) is None


async def test_no_free_connection_is_no_timeout_of_a_request() -> None:
    limits = httpx2.Limits(max_connections=1)
    timeout = httpx2.Timeout(5, pool=0.05)
    http = httpx2.AsyncClient(limits=limits, trust_env=False)
    async with connected(quick(SlowHeaders(seconds=5)), http_client=http, timeout=timeout) as (_, client):
        first = asyncio.create_task(complete(client))
        await asyncio.sleep(0.05)
        with pytest.raises(UpstreamError) as caught:
            await complete(client)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert caught.value.kind == Kind.CONNECTION


async def test_a_dribbling_answer_is_an_answer() -> None:
    async with connected(quick(SlowLoris(size=200, interval_s=0.002))) as (_, client):
        call = await complete(client)
    assert call.message.stop_reason == "end_turn"


@pytest.mark.parametrize("kept", ["ping", "comment"])
async def test_silence_with_signs_of_life_is_no_timeout(kept: Any) -> None:
    stall = Stall(after_chunks=None, seconds=0.3, keep_alive=kept, interval_s=0.05)
    async with connected(quick(stall), timeout=0.2) as (_, client):
        assert (await complete(client)).message.stop_reason == "end_turn"
