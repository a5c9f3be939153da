"""The simulated limits on the wire: headers, refusals, and what they count."""

import asyncio
import math
from datetime import UTC, datetime
from typing import Any

import anthropic
import pytest

from scheduler.testing import Fault, Latency, Limits, Script, SimulatedClaude, effects
from tests.testing.claude_client import MODEL, asked, call, collect, create, quick, sdk, text_of, until

START = Limits(requests_per_minute=1_000, input_tokens_per_minute=2_000_000, output_tokens_per_minute=400_000)
NAMES = [
    f"anthropic-ratelimit-{limit}-{part}"
    for limit in ("requests", "input-tokens", "output-tokens", "tokens")
    for part in ("limit", "remaining", "reset")
]


def rate_headers(headers: Any) -> dict[str, str]:
    return {name: headers[name] for name in headers if name.startswith("anthropic-ratelimit-")}


async def test_every_answer_carries_all_limits() -> None:
    async with SimulatedClaude(quick(limits=START)) as claude, sdk(claude) as client:
        raw = await client.messages.with_raw_response.create(**asked())
        stream = await client.messages.create(**asked(stream=True))
        await stream.close()
    for headers in (raw.headers, stream.response.headers):
        assert list(rate_headers(headers)) == NAMES
        assert headers["anthropic-ratelimit-tokens-limit"] == "2400000"
    assert raw.headers["anthropic-ratelimit-requests-remaining"] == "999"
    assert stream.response.headers["anthropic-ratelimit-requests-remaining"] == "998"


async def test_remaining_tokens_are_rounded_and_the_reset_is_the_time_to_full() -> None:
    limits = Limits(requests_per_minute=60, output_tokens_per_minute=20_000)
    async with SimulatedClaude(quick(limits=limits, reply_tokens=1_400)) as claude, sdk(claude) as client:
        for _ in range(20):
            await create(client, max_tokens=10_000)
            if claude.stats().output_tokens > 10_000:
                break
        headers = (await call(claude, "/v1/messages", asked())).headers
        now_s = claude._simulation.time.wall_s()
    remaining = int(headers["anthropic-ratelimit-output-tokens-remaining"])
    assert remaining % 1_000 == 0
    assert 8_000 <= remaining <= 10_000
    reset = datetime.strptime(
        headers["anthropic-ratelimit-output-tokens-reset"], "%Y-%m-%dT%H:%M:%SZ"
    ).replace(tzinfo=UTC)
    # Eleven thousand tokens missing, at a third of a thousand per second.
    assert 20 <= reset.timestamp() - now_s <= 40


async def test_a_refusal_names_the_limit_and_the_wait() -> None:
    limits = Limits(requests_per_minute=2, burst_s=1)
    async with SimulatedClaude(quick(limits=limits)) as claude, sdk(claude) as client:
        await create(client)
        with pytest.raises(anthropic.RateLimitError) as caught:
            await create(client)
        attempt = claude.requests[1]
    response = caught.value.response
    assert response.headers["retry-after"] == "30"
    assert "retry-after-ms" not in response.headers
    assert response.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert "2 requests per minute" in str(caught.value)
    assert caught.value.error_code is None
    assert (attempt.decision, attempt.reason, attempt.status) == ("refused", "requests", 429)
    assert attempt.retry_after_s is not None
    assert 29 < attempt.retry_after_s <= 30
    assert claude.stats().refused == {"requests": 1}
    assert claude.stats().rate_limited == 1


@pytest.mark.parametrize(
    ("limits", "named", "message"),
    [
        (Limits(input_tokens_per_minute=30_000), "input-tokens", "30,000 input tokens per minute"),
        (Limits(workspace_tokens_per_minute=30_000), "tokens", "30,000 tokens per minute"),
    ],
)
async def test_input_that_does_not_fit_is_refused(limits: Limits, named: str, message: str) -> None:
    async with SimulatedClaude(quick(limits=limits)) as claude, sdk(claude) as client:
        with pytest.raises(anthropic.RateLimitError, match=message):
            await create(client, "x" * 4 * 30_100)
        assert claude.requests[0].reason == named
        await create(client, "x" * 4 * 15_000)


async def test_max_tokens_costs_nothing_and_output_counts_as_it_is_produced() -> None:
    limits = Limits(output_tokens_per_minute=20)
    async with SimulatedClaude(quick(limits=limits)) as claude, sdk(claude) as client:
        first = await create(client, max_tokens=10_000)
        second = await create(client, max_tokens=10_000)
        with pytest.raises(anthropic.RateLimitError, match="20 output tokens per minute"):
            await create(client, max_tokens=1)
        assert claude.stats().output_tokens == first.usage.output_tokens + second.usage.output_tokens == 24
        assert claude.requests[2].reason == "output-tokens"


async def test_the_wait_it_names_is_enough_and_less_is_not() -> None:
    limits = Limits(requests_per_minute=60, burst_s=1, retry_after_ms=True)
    async with SimulatedClaude(quick(limits=limits, time_scale=0.5)) as claude:
        assert (await call(claude, "/v1/messages", asked())).status == 200
        refused = await call(claude, "/v1/messages", asked())
        wait_s = int(refused.headers["retry-after-ms"]) / 1000
        assert 0.001 <= wait_s <= 0.5
        await asyncio.sleep(wait_s)
        assert (await call(claude, "/v1/messages", asked())).status == 200
        first, second, third = claude.requests
    assert refused.headers["retry-after"] == "1"
    assert second.retry_after_s is not None
    assert math.ceil(second.retry_after_s * 1000) == int(refused.headers["retry-after-ms"])
    # A permit each simulated second is one each half of a real one.
    assert third.arrival_ns - first.arrival_ns >= 0.49e9


async def test_the_scale_speeds_up_the_buckets() -> None:
    limits = Limits(requests_per_minute=60, burst_s=1, retry_after_ms=True)
    async with (
        SimulatedClaude(quick(limits=limits, time_scale=0.01)) as claude,
        sdk(claude, max_retries=5) as client,
    ):
        for _ in range(10):
            await create(client)
        times = [attempt.arrival_ns for attempt in claude.requests if attempt.decision == "admitted"]
    assert len(times) == 10
    assert times[-1] - times[0] >= 8 * 10_000_000


async def test_buckets_are_per_credential_and_model_class() -> None:
    limits = Limits(requests_per_minute=1)
    async with SimulatedClaude(quick(limits=limits)) as claude:
        async with sdk(claude) as one, sdk(claude, api_key="sk-another") as another:
            await create(one, model="claude-opus-4-8")
            await create(another, model="claude-opus-4-8")
            await create(one, model="claude-sonnet-5")
            with pytest.raises(anthropic.RateLimitError):
                await create(one, model="claude-opus-4-6")
        assert [attempt.model_class for attempt in claude.requests] == [
            "claude-opus-4", "claude-opus-4", "claude-sonnet-5", "claude-opus-4",
        ]  # fmt: skip


async def test_the_same_key_is_one_credential_in_either_header() -> None:
    async with SimulatedClaude(quick(limits=Limits(requests_per_minute=1))) as claude, sdk(claude) as client:
        await create(client)
        assert (await call(claude, "/v1/messages", asked())).status == 429
        assert [attempt.credential_header for attempt in claude.requests] == ["authorization", "x-api-key"]
        assert len({attempt.credential for attempt in claude.requests}) == 1


async def test_a_class_can_have_limits_of_its_own() -> None:
    config = quick(limits=Limits(requests_per_minute=5), class_limits={MODEL: Limits(requests_per_minute=1)})
    async with SimulatedClaude(config) as claude:
        first = await call(claude, "/v1/messages", asked())
        assert first.headers["anthropic-ratelimit-requests-limit"] == "1"
        assert (await call(claude, "/v1/messages", asked())).status == 429
        other = await call(claude, "/v1/messages", asked(model="claude-sonnet-5"))
        assert other.headers["anthropic-ratelimit-requests-limit"] == "5"


async def test_counting_tokens_has_a_limit_of_its_own() -> None:
    limits = Limits(requests_per_minute=1, count_tokens_per_minute=2)
    async with SimulatedClaude(quick(limits=limits)) as claude:
        statuses = [(await call(claude, "/v1/messages/count_tokens", asked())).status for _ in range(3)]
        assert (await call(claude, "/v1/messages", asked())).status == 200
    assert statuses == [200, 200, 429]


async def test_without_limits_there_are_no_such_headers() -> None:
    async with SimulatedClaude(quick()) as claude:
        response = await call(claude, "/v1/messages", asked())
    assert rate_headers(response.headers) == {}


async def test_a_running_request_is_not_cut_when_its_output_runs_the_bucket_dry() -> None:
    script = Script(contains="long", text="word " * 200)
    config = quick(limits=Limits(output_tokens_per_minute=60), scripts=(script,))
    async with SimulatedClaude(config) as claude, sdk(claude) as client:
        async with client.messages.stream(**asked("a long one", max_tokens=1000)) as stream:
            message = await stream.get_final_message()
        refused = await call(claude, "/v1/messages", asked())
    assert len(text_of(message).split()) == 200
    assert refused.status == 429
    # 140 below zero, at one per second.
    assert 130 <= int(refused.headers["retry-after"]) <= 142


async def test_output_is_charged_while_it_streams() -> None:
    latency = Latency(ttft_base_s=0, jitter=0, prefill_tps=None, decode_tps=10, chunk_tokens_max=1)
    config = quick(
        limits=Limits(output_tokens_per_minute=1), latency=latency, time_scale=0.2, reply_tokens=50
    )
    async with SimulatedClaude(config) as claude, sdk(claude) as client:
        stream = await client.messages.create(**asked(stream=True))
        async for event in stream:
            if event.type == "content_block_delta" and claude.requests[0].output_tokens > 2:
                break
        # One second of ten lies behind it, and the bucket is below zero already.
        refused = await call(claude, "/v1/messages", asked())
        running = claude.requests[0].end_ns is None
        await stream.close()
    assert running
    assert refused.status == 429


async def test_a_plain_answer_is_charged_while_it_is_produced() -> None:
    latency = Latency(ttft_base_s=0, jitter=0, prefill_tps=None, decode_tps=10)
    config = quick(
        limits=Limits(output_tokens_per_minute=1), latency=latency, time_scale=0.2, reply_tokens=50
    )
    async with SimulatedClaude(config) as claude, sdk(claude) as client:
        task = asyncio.ensure_future(create(client))
        await until(lambda: claude.stats().in_flight == 1 and claude.requests[0].output_tokens > 2)
        refused = await call(claude, "/v1/messages", asked())
        running = claude.requests[0].end_ns is None
        task.cancel()
    assert running
    assert refused.status == 429


async def test_an_injected_429_tells_the_real_levels() -> None:
    config = quick(Fault(effects.RateLimited()), limits=START)
    async with SimulatedClaude(config) as claude:
        response = await call(claude, "/v1/messages", asked())
    assert response.status == 429
    assert list(rate_headers(response.headers)) == NAMES
    assert response.headers["anthropic-ratelimit-requests-remaining"] == "1000"


async def test_a_burst_at_the_limit_meets_no_refusal_and_one_more_does() -> None:
    limits = Limits(requests_per_minute=100)
    async with SimulatedClaude(quick(limits=limits)) as claude, sdk(claude) as client:
        await asyncio.gather(*(create(client) for _ in range(100)))
        assert claude.stats().rate_limited == 0
        events = await asyncio.gather(*(collect(client) for _ in range(10)), return_exceptions=True)
        assert sum(isinstance(result, anthropic.RateLimitError) for result in events) >= 5
