"""The calls about message batches: what the adapter makes of answers, and of what is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic

from scheduler import UpstreamError, Usage
from scheduler.upstreams import batches
from scheduler.upstreams.batches import Kind
from scheduler.upstreams.claude import Client, Message, usage_of

SECRET = "the-secret-prompt"
TEXTS = list(enumerate(["hello", "grüße 😀", 'a "quoted" \\ text\n']))
ENDED = {"id": "b", "processing_status": "ended", "results_url": "/v1/messages/batches/b/results"}
MESSAGE = {
    "id": "m", "type": "message", "model": "m", "content": [], "stop_reason": "end_turn", "usage": {},
}  # fmt: skip


@asynccontextmanager
async def answering(answer: Callable[[httpx2.Request], Any]) -> AsyncIterator[Client]:
    """A client whose upstream answers like this."""
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
        yield AsyncAnthropic(api_key="k", base_url="http://claude.test", http_client=http, max_retries=0)


async def read(*lines: Any) -> dict[str, Message | UpstreamError]:
    """What the results of a batch are, that come as these lines."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/results"):
            return httpx2.Response(200, content=b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        return httpx2.Response(200, json=ENDED)

    async with answering(answer) as client:
        return {name: result async for name, result in batches.results(client, "b")}


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        ({"type": "expired"}, Kind.EXPIRED),
        ({"type": "canceled"}, Kind.CANCELED),
        ({"type": "errored", "error": {"error": {"type": "overloaded_error"}}}, Kind.OVERLOADED),
        ({"type": "errored", "error": {"error": {"type": "rate_limit_error"}}}, Kind.RATE_LIMITED),
        ({"type": "errored", "error": {"error": {"type": "api_error"}}}, Kind.SERVER_ERROR),
        ({"type": "errored", "error": {"error": {"type": "billing_error"}}}, Kind.SPEND_LIMIT),
        (
            {"type": "errored", "error": {"error": {"type": "invalid_request_error", "message": SECRET}}},
            Kind.BAD_REQUEST,
        ),
        ({"type": "errored", "error": {"error": {"type": f"a {SECRET}"}}}, Kind.SERVER_ERROR),
        ({"type": "errored"}, Kind.SERVER_ERROR),
        ({"type": "succeeded"}, Kind.MALFORMED),
        ({"type": "succeeded", "message": {**MESSAGE, "content": None}}, Kind.MALFORMED),
        ({"type": "succeeded", "message": {**MESSAGE, "stop_reason": None}}, Kind.MALFORMED),
        ({"type": "succeeded", "message": {**MESSAGE, "model": None}}, Kind.MALFORMED),
        ({"type": "succeeded", "message": {**MESSAGE, "content": ["x"]}}, Kind.MALFORMED),
        ({"type": "succeeded", "message": {**MESSAGE, "content": [{"text": "x"}]}}, Kind.MALFORMED),
        ({"type": "succeeded", "message": {**MESSAGE, "content": [{"type": "text"}]}}, Kind.MALFORMED),
        ({"type": "succeeded", "message": {**MESSAGE, "content": [{"type": "tool_use"}]}}, Kind.MALFORMED),
        ({"type": "something new"}, Kind.MALFORMED),
        ("nothing", Kind.MALFORMED),
        (None, Kind.MALFORMED),
    ],
)
async def test_what_is_no_answer_says_why(result: Any, kind: Kind) -> None:
    found = await read({"custom_id": "1", "result": result}, {"custom_id": "2", "result": good()})
    assert isinstance(found["2"], Message)
    error = found["1"]
    assert isinstance(error, UpstreamError)
    assert error.kind == kind
    assert SECRET not in f"{error} {error!r}"


async def test_a_result_of_nobody_is_passed_over_and_one_without_usage_used_a_request() -> None:
    bare = {name: value for name, value in MESSAGE.items() if name != "usage"}
    found = await read(
        {"custom_id": [1], "result": good()},
        {"custom_id": "2", "result": {"type": "succeeded", "message": bare}},
    )
    assert list(found) == ["2"]
    assert isinstance(found["2"], Message)
    assert usage_of(found["2"]) == Usage(1, 0, 0)


async def test_a_call_that_is_not_answered_soon_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CONTROL_S", 0.01)

    async def silence(request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(60)
        raise AssertionError(request.url)

    async with answering(silence) as client:
        for call in (batches.has_ended(client, "b"), batches.cancel(client, "b")):
            with pytest.raises(UpstreamError) as caught:
                await call
            assert caught.value.kind == Kind.TIMEOUT
            assert caught.value.__context__ is None


def good() -> dict[str, Any]:
    return {"type": "succeeded", "message": MESSAGE}


@pytest.mark.parametrize(
    ("content", "kind"), [(b"{]\n", Kind.MALFORMED), (b'["x"]\n', Kind.MALFORMED), (b"3\n", Kind.MALFORMED)]
)
async def test_results_that_cannot_be_read(content: bytes, kind: Kind) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        ends = request.url.path.endswith("/results")
        return httpx2.Response(200, content=content) if ends else httpx2.Response(200, json=ENDED)

    async with answering(answer) as client:
        with pytest.raises(UpstreamError) as caught:
            _ = [line async for line in batches.results(client, "b")]
    assert caught.value.kind == kind
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize("body", [{}, {"id": ""}, {"id": 3, "processing_status": 4}, [], "text"])
async def test_a_batch_that_is_none_is_malformed(body: Any) -> None:
    async with answering(lambda request: httpx2.Response(200, json=body)) as client:
        for call in (batches.create(client, [("1", b"{}")]), batches.has_ended(client, "b")):
            with pytest.raises(UpstreamError) as caught:
                await call
            assert caught.value.kind == Kind.MALFORMED


async def test_an_error_status_is_its_kind_and_carries_no_request() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        error = {"type": "rate_limit_error", "message": SECRET}
        return httpx2.Response(429, headers={"retry-after": "7"}, json={"type": "error", "error": error})

    async with answering(answer) as client:
        for call in (
            batches.create(client, [("1", batches.written({"system": SECRET}))]),
            batches.has_ended(client, "b"),
            batches.cancel(client, "b"),
        ):
            with pytest.raises(UpstreamError) as caught:
                await call
            assert (caught.value.kind, caught.value.retry_after) == (Kind.RATE_LIMITED, 7.0)
            assert caught.value.__cause__ is caught.value.__context__ is None
            assert SECRET not in repr(caught.value)


def test_custom_ids_are_what_the_upstream_takes() -> None:
    assert batches.custom_id(0, "3f2a-17") == "0-3f2a-17"
    assert batches.custom_id(12, "a.b/ü") == "12-a_b__"
    assert batches.custom_id(99_999, "x" * 100) == "99999-" + "x" * 58


async def test_a_batch_goes_as_the_sdk_would_write_it_and_is_no_larger_than_its_requests_say() -> None:
    requests = [(str(number), {"model": "m", "system": text}) for number, text in TEXTS]
    sent: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(200, json=ENDED)

    bodies = [(name, batches.written(request)) for name, request in requests]
    async with answering(answer) as client:
        assert await batches.create(client, bodies) == "b"
        listed: Any = [{"custom_id": name, "params": request} for name, request in requests]
        await client.messages.batches.create(requests=listed)
    ours, theirs = sent
    assert (ours.method, ours.url) == (theirs.method, theirs.url)
    assert dict(ours.headers) == dict(theirs.headers)
    assert ours.content == theirs.content
    assert len(ours.content) < sum(len(body) + batches.ENVELOPE_BYTES for _, body in bodies)


@pytest.mark.parametrize("value", [object(), float("nan"), "\ud800" + SECRET])
def test_what_cannot_be_sent_is_found_before(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        batches.written({"system": value})
    assert SECRET not in repr(caught.value)
    assert caught.value.__context__ is None
