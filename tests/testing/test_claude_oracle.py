"""The oracle: what it records, what it keeps to itself, and how it notices who has left."""

import asyncio
import hashlib
import json
import logging

import pytest

from scheduler.testing import Latency, SimulatedClaude, credential_id
from tests.testing.claude_client import (
    HEADERS,
    KEY,
    asked,
    call,
    collect,
    connection,
    create,
    quick,
    request_bytes,
    sdk,
    until,
)  # fmt: skip

SECRET = "the-prompt-nobody-may-see"
SLOW = Latency(ttft_base_s=0, jitter=0, prefill_tps=None, decode_tps=10, chunk_tokens_max=1)


async def test_an_attempt_is_recorded_from_arrival_to_end() -> None:
    config = quick(
        latency=Latency(ttft_base_s=5, jitter=0, decode_tps=6), time_scale=0.01, record_headers=("x-extra",)
    )
    async with SimulatedClaude(config) as claude, sdk(claude) as client:
        extra = {
            "x-waitline-tenant": "acme",
            "x-waitline-job": "job-1",
            "x-extra": "yes",
            "x-stainless-retry-count": "2",
        }
        await client.messages.create(**asked(), extra_headers=extra)
        attempt = claude.requests[0]
    assert (attempt.number, attempt.method, attempt.path) == (1, "POST", "/v1/messages")
    assert (attempt.tenant, attempt.job, attempt.headers) == ("acme", "job-1", {"x-extra": "yes"})
    assert (attempt.credential, attempt.retry_count) == (credential_id(KEY), 2)
    assert (attempt.model, attempt.model_class) == ("claude-haiku-4-5", "claude-haiku-4-5")
    assert (attempt.decision, attempt.reason, attempt.fault, attempt.status) == ("admitted", None, None, 200)
    assert (attempt.input_tokens, attempt.output_tokens) == (9, 12)
    assert (attempt.disconnect_ns, attempt.cancelled) == (None, False)
    assert attempt.ttft_ns is not None
    assert attempt.end_ns is not None
    # Five seconds to the first token and two for twelve more, of which a hundredth each is real.
    assert attempt.ttft_ns >= 70_000_000
    assert attempt.end_ns - attempt.arrival_ns >= attempt.ttft_ns
    assert isinstance(attempt.arrival_ns, int)
    assert attempt.bytes_in > 0
    assert attempt.bytes_out > 100


async def test_arrivals_are_in_order_and_of_the_monotonic_clock() -> None:
    async with SimulatedClaude(quick()) as claude, sdk(claude) as client:
        before_ns = claude._simulation.time.now_ns()
        await asyncio.gather(*(create(client, tenant=f"t{n % 3}") for n in range(30)))
        after_ns = claude._simulation.time.now_ns()
        attempts = claude.requests
    assert [attempt.number for attempt in attempts] == list(range(1, 31))
    assert before_ns <= min(attempt.arrival_ns for attempt in attempts)
    assert max(attempt.end_ns or 0 for attempt in attempts) <= after_ns
    assert sorted(attempt.tenant or "" for attempt in attempts) == ["t0"] * 10 + ["t1"] * 10 + ["t2"] * 10


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ({}, None),
        ({"x-tenant-id": "b"}, "b"),
        ({"x-waitline-tenant": "a", "x-tenant-id": "b"}, "a"),
    ],
)
async def test_who_the_tenant_is(headers: dict[str, str], tenant: str | None) -> None:
    async with SimulatedClaude(quick()) as claude:
        await call(claude, "/v1/messages", asked(), headers={**HEADERS, **headers})
        assert claude.requests[0].tenant == tenant


async def test_the_headers_that_tell_the_tenant_can_be_chosen() -> None:
    async with SimulatedClaude(quick(tenant_headers=("x-customer",), job_headers=("x-run",))) as claude:
        await call(claude, "/v1/messages", asked(), headers={**HEADERS, "x-customer": "a", "x-run": "b"})
        assert (claude.requests[0].tenant, claude.requests[0].job) == ("a", "b")


async def test_no_prompt_and_no_key_is_kept_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("anthropic").setLevel(logging.WARNING)
    async with SimulatedClaude(quick(record_headers=("*",))) as claude, sdk(claude) as client:
        await create(client, SECRET)
        refused = await call(claude, "/v1/messages", asked(SECRET, max_tokens=0))
        kept = (
            repr(claude.requests)
            + repr(claude.stats())
            + json.dumps([a.to_mapping() for a in claude.requests])
        )
        body = claude.requests[0].body
    assert body is None
    for text in (kept, refused.body.decode(), caplog.text):
        assert SECRET not in text
        assert KEY not in text


async def test_bodies_are_hashed_and_kept_only_on_request() -> None:
    async with SimulatedClaude(quick(keep_bodies=True)) as claude:
        await call(claude, "/v1/messages", asked(SECRET))
        attempt = claude.requests[0]
    assert attempt.body is not None
    assert SECRET in attempt.body.decode()
    assert attempt.body_sha256 == hashlib.sha256(attempt.body).hexdigest()
    assert attempt.bytes_in == len(attempt.body)
    assert "body" not in attempt.to_mapping()


async def test_the_log_is_bounded_and_the_sums_are_not_affected() -> None:
    async with SimulatedClaude(quick(attempts_max=3)) as claude, sdk(claude) as client:
        for _ in range(5):
            await create(client)
        assert [attempt.number for attempt in claude.requests] == [3, 4, 5]
        assert claude.stats().requests == claude.stats().admitted == 5


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_is_noticed_at_once_and_its_work_stops(stream: bool) -> None:
    async with SimulatedClaude(quick(latency=SLOW, reply_tokens=1_000)) as claude, sdk(claude) as client:
        task = asyncio.ensure_future(
            collect(client, max_tokens=1_000) if stream else create(client, max_tokens=1_000)
        )
        await until(lambda: claude.stats().in_flight == 1)
        task.cancel()
        await until(lambda: claude.stats().in_flight == 0)
        attempt, stats = claude.requests[0], claude.stats()
    assert task.cancelled()
    assert attempt.cancelled
    assert attempt.disconnect_ns is not None
    assert attempt.end_ns is not None
    assert attempt.arrival_ns <= attempt.disconnect_ns <= attempt.end_ns
    assert attempt.output_tokens < 1_000
    assert (stats.disconnected, stats.cancelled, stats.output_tokens_after_disconnect) == (1, 1, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_work_can_go_on_for_a_client_that_has_left_and_is_counted(stream: bool) -> None:
    latency = Latency(ttft_base_s=0, jitter=0, prefill_tps=None, decode_tps=1_000)
    config = quick(latency=latency, reply_tokens=150, finish_abandoned=True)
    async with SimulatedClaude(config) as claude:
        async with connection(claude) as (_, writer):
            writer.write(request_bytes("/v1/messages", asked(stream=stream, max_tokens=1_000)))
            await until(lambda: claude.stats().in_flight == 1)
        await until(lambda: claude.requests[0].end_ns is not None)
        attempt, stats = claude.requests[0], claude.stats()
    assert attempt.disconnect_ns is not None
    assert not attempt.cancelled
    assert attempt.output_tokens == 150
    assert 0 < stats.output_tokens_after_disconnect <= 150
    assert stats.disconnected == 1


async def test_a_client_that_leaves_after_its_answer_has_not_left_early() -> None:
    async with SimulatedClaude(quick()) as claude:
        await call(claude, "/v1/messages", asked())
        await until(lambda: not claude._connections)
        assert claude.stats().disconnected == 0


async def test_the_peak_in_flight_is_the_most_at_once() -> None:
    async with SimulatedClaude(quick(latency=SLOW, time_scale=0.05)) as claude, sdk(claude) as client:
        tasks = [asyncio.ensure_future(create(client)) for _ in range(7)]
        await until(lambda: claude.stats().in_flight == 7)
        await asyncio.gather(*tasks)
        assert (claude.stats().in_flight, claude.stats().in_flight_peak) == (0, 7)


async def test_a_reset_starts_anew_while_a_request_runs() -> None:
    async with SimulatedClaude(quick(latency=SLOW, time_scale=0.05), seed=3) as claude, sdk(claude) as client:
        running = asyncio.ensure_future(create(client))
        await until(lambda: claude.stats().in_flight == 1)
        first = claude.requests[0].request_id
        claude.reset()
        assert (claude.requests, claude.stats().requests) == ([], 0)
        await running
        assert (claude.stats().in_flight, claude.stats().output_tokens) == (0, 0)
        await create(client)
        assert claude.requests[0].request_id == first


async def test_closing_ends_what_runs() -> None:
    claude = SimulatedClaude(quick(latency=SLOW, reply_tokens=1_000))
    await claude.start()
    async with sdk(claude) as client:
        task = asyncio.ensure_future(create(client, max_tokens=1_000))
        await until(lambda: claude.stats().in_flight == 1)
        await claude.aclose()
        with pytest.raises(Exception, match="Connection error"):
            await task
    assert (claude.stats().in_flight, claude.requests[0].cancelled) == (0, True)
