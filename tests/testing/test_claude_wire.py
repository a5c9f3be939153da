"""What the installed SDK sends, and whom the simulated API lets in."""

import asyncio
import json
import math
from typing import Any

import pytest
from anthropic import AsyncAnthropic

from scheduler.testing import ClaudeConfig, SimulatedClaude
from tests.testing.claude_client import HEADERS, KEY, MODEL, asked, call, create, quick, sdk

RECORD_ALL = quick(record_headers=("*",), keep_bodies=True)


async def test_the_installed_sdk_sends_what_the_gateway_relies_on() -> None:
    async with SimulatedClaude(RECORD_ALL) as claude, sdk(claude) as client:
        await create(client)
        sent = claude.requests[0]
    assert (sent.method, sent.path) == ("POST", "/v1/messages")
    assert sent.credential_header == "authorization"
    assert sent.headers["anthropic-version"] == "2026-10-21"
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["accept"] == "application/json"
    assert sent.headers["accept-encoding"] == "gzip, deflate"
    assert sent.headers["connection"] == "keep-alive"
    assert sent.headers["x-stainless-retry-count"] == "0"
    assert sent.headers["x-stainless-read-timeout"] == "600"
    # The guard of plain calls turns the client's default into a timeout of the call.
    assert sent.headers["x-stainless-timeout"] == "600"
    assert sent.headers["x-stainless-async"] == "async:asyncio"
    assert sent.headers["user-agent"].startswith("AsyncAnthropic/Python 2.")
    for name in ("lang", "package-version", "os", "arch", "runtime", "runtime-version"):
        assert f"x-stainless-{name}" in sent.headers
    assert not [name for name in sent.headers if "idempotency" in name]
    assert "authorization" not in sent.headers


async def test_a_timeout_is_told_and_no_timeout_leaves_the_read_timeout_out() -> None:
    async with SimulatedClaude(RECORD_ALL) as claude, sdk(claude) as client:
        await create(client.with_options(timeout=12.5))
        await create(client, timeout=7.5)
        await create(client.with_options(timeout=None))
        told = [
            (attempt.headers.get("x-stainless-read-timeout"), attempt.headers["x-stainless-timeout"])
            for attempt in claude.requests
        ]
    assert told == [("12.5", "NOT_GIVEN"), ("7.5", "7.5"), (None, "NOT_GIVEN")]


async def test_streams_do_not_ask_for_an_event_stream_by_accept() -> None:
    async with SimulatedClaude(RECORD_ALL) as claude, sdk(claude) as client:
        async with client.messages.stream(**asked()) as stream:
            await stream.get_final_message()
        sent = claude.requests[0]
    assert sent.headers["accept"] == "application/json"
    assert sent.headers["x-stainless-helper-method"] == "stream"
    assert sent.headers["x-stainless-stream-helper"] == "messages"
    assert sent.body is not None
    assert json.loads(sent.body)["stream"] is True
    assert sent.stream


async def test_betas_travel_in_a_header_and_leave_the_path_alone() -> None:
    async with SimulatedClaude(RECORD_ALL) as claude, sdk(claude) as client:
        await client.beta.messages.create(**asked(), betas=["one-2026-01-01", "two-2026-01-01"])
        sent = claude.requests[0]
    assert sent.path == "/v1/messages"
    assert sent.headers["anthropic-beta"].replace(" ", "") == "one-2026-01-01,two-2026-01-01"


async def test_query_strings_are_ignored() -> None:
    async with SimulatedClaude(quick()) as claude:
        response = await call(claude, "/v1/messages?beta=true", asked())
    assert response.status == 200


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        (HEADERS, 200, None),
        ({"authorization": f"Bearer {KEY}", "anthropic-version": "2026-10-21"}, 200, None),
        ({"authorization": f"Bearer {KEY}", "anthropic-version": "2023-06-01"}, 200, None),
        ({"authorization": f"Basic {KEY}", "anthropic-version": "2023-06-01"}, 401, "authentication_error"),
        ({"anthropic-version": "2023-06-01"}, 401, "authentication_error"),
        ({"x-api-key": "another", "anthropic-version": "2023-06-01"}, 401, "authentication_error"),
        ({"x-api-key": KEY}, 400, "invalid_request_error"),
        ({"x-api-key": KEY, "anthropic-version": "1999-01-01"}, 400, "invalid_request_error"),
    ],
)
async def test_who_is_let_in(headers: dict[str, str], status: int, kind: str | None) -> None:
    async with SimulatedClaude(quick(api_keys=(KEY,))) as claude:
        response = await call(claude, "/v1/messages", asked(), headers=headers)
        assert claude.requests[0].status == status
    assert response.status == status
    assert response.json().get("error", {}).get("type") == kind


@pytest.mark.parametrize(
    ("body", "status", "kind", "named"),
    [
        (b"{not json", 400, "invalid_request_error", "JSON"),
        (b"[]", 400, "invalid_request_error", "object"),
        (
            {"max_tokens": 1, "messages": [{"role": "user", "content": "x"}]},
            400,
            "invalid_request_error",
            "model",
        ),
        ({"model": MODEL, "max_tokens": 1}, 400, "invalid_request_error", "messages"),
        ({"model": MODEL, "max_tokens": 1, "messages": []}, 400, "invalid_request_error", "messages"),
        (
            {"model": MODEL, "max_tokens": 1, "messages": ["x"]},
            400,
            "invalid_request_error",
            "messages.0.role",
        ),
        (asked(messages=[{"role": "user"}]), 400, "invalid_request_error", "messages.0.content"),
        (
            {"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
            400,
            "invalid_request_error",
            "max_tokens",
        ),
        (asked(max_tokens=0), 400, "invalid_request_error", "max_tokens"),
        (asked(max_tokens=True), 400, "invalid_request_error", "max_tokens"),
        (asked(model="claude-unheard-of"), 404, "not_found_error", "claude-unheard-of"),
        (asked("x" * 5000), 413, "request_too_large", "size"),
    ],
)
async def test_what_is_turned_down(body: Any, status: int, kind: str, named: str) -> None:
    async with SimulatedClaude(quick(body_bytes_max=4000)) as claude:
        response = await call(claude, "/v1/messages", body)
        attempt = claude.requests[0]
    error = response.json()
    assert response.status == status
    assert (error["type"], error["error"]["type"]) == ("error", kind)
    assert named in error["error"]["message"]
    assert error["request_id"] == response.headers["request-id"] == attempt.request_id
    assert (attempt.decision, attempt.reason) == ("invalid", kind)


@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k"])
async def test_sampling_is_refused_by_the_newer_version_only(field: str) -> None:
    sampling = {**asked(), field: 1}
    newer = {**HEADERS, "anthropic-version": "2026-10-21"}
    async with SimulatedClaude(quick()) as claude:
        old = await call(claude, "/v1/messages", sampling)
        new = await call(claude, "/v1/messages", sampling, headers=newer)
    assert (old.status, new.status) == (200, 400)
    assert field in new.json()["error"]["message"]


async def test_unknown_fields_and_system_messages_are_accepted() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    async with SimulatedClaude(quick()) as claude:
        response = await call(claude, "/v1/messages", asked(messages=messages, invented={"a": 1}))
    assert response.status == 200


async def test_every_response_names_its_request_and_organization() -> None:
    async with SimulatedClaude(quick(organization_id="org-1")) as claude:
        responses = [
            await call(claude, "/v1/messages", asked()),
            await call(claude, "/v1/messages/count_tokens", asked()),
            await call(claude, "/v1/models", method="GET"),
            await call(claude, "/v1/nothing", method="GET"),
            await call(claude, "/", method="HEAD"),
        ]
    ids = [response.headers["request-id"] for response in responses]
    assert len(set(ids)) == 5
    assert all(len(identifier) == len("req_") + 24 for identifier in ids)
    assert {response.headers["anthropic-organization-id"] for response in responses} == {"org-1"}
    assert [response.status for response in responses] == [200, 200, 200, 404, 200]


async def test_head_of_anything_else_is_an_error_without_a_body() -> None:
    async with SimulatedClaude(quick()) as claude:
        response = await call(claude, "/v1/messages", method="HEAD")
        assert claude.requests[0].status == 404
    assert (response.status, response.body) == (404, b"")


async def test_models_are_listed_and_found_by_name_and_by_snapshot() -> None:
    async with SimulatedClaude(quick()) as claude, sdk(claude) as client:
        listed = [model.id async for model in client.models.list()]
        one = await client.models.retrieve(MODEL)
        snapshot = await client.models.retrieve(f"{MODEL}-20251001")
        message = await create(client, model=f"{MODEL}-20251001")
        assert claude.requests[-1].model_class == MODEL
    assert MODEL in listed
    assert (one.id, one.lifecycle, snapshot.id) == (MODEL, "active", f"{MODEL}-20251001")
    assert message.model == f"{MODEL}-20251001"


async def test_models_can_be_configured() -> None:
    async with (
        SimulatedClaude(quick(models={"tiny": "small", "little": "small"})) as claude,
        sdk(claude) as client,
    ):
        await create(client, model="tiny")
        assert claude.requests[0].model_class == "small"
        assert [model.id async for model in client.models.list()] == ["tiny", "little"]


async def test_counted_tokens_are_the_tokens_of_the_answer() -> None:
    text = "naïve café " * 20
    async with SimulatedClaude(quick()) as claude, sdk(claude) as client:
        counted = await client.messages.count_tokens(
            model=MODEL, messages=[{"role": "user", "content": text}]
        )
        message = await create(client, text)
    assert counted.input_tokens == message.usage.input_tokens == math.ceil(len(text.encode()) / 4) + 4 + 3


async def test_a_base_url_that_ends_in_v1_goes_astray() -> None:
    async with SimulatedClaude(quick()) as claude:
        async with AsyncAnthropic(api_key=KEY, base_url=f"{claude.base_url}/v1", max_retries=0) as client:
            with pytest.raises(Exception, match="Not found"):
                await create(client)
        assert claude.requests[0].path == "/v1/v1/messages"


async def test_it_listens_on_the_loopback_interface_and_frees_its_port() -> None:
    claude = SimulatedClaude(ClaudeConfig())
    with pytest.raises(RuntimeError):
        _ = claude.base_url
    url = await claude.start()
    assert url.startswith("http://127.0.0.1:")
    with pytest.raises(RuntimeError):
        await claude.start()
    port = int(url.rpartition(":")[2])
    await claude.aclose()
    await claude.aclose()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
