"""Message batches: they end by themselves, and answer as single requests do."""

from datetime import timedelta
from typing import Any

import anthropic
import pytest

from scheduler.testing import ClaudeConfig, Fault, Match, Script, SimulatedClaude, ToolCall, damage, effects
from scheduler.testing.claude.loading import ConfigError
from tests.testing.claude_client import HEADERS, asked, call, create, quick, sdk, text_of


def entry(custom_id: str, text: str = "hello", **fields: Any) -> Any:
    return {"custom_id": custom_id, "params": asked(text, **fields)}


async def test_a_batch_runs_ends_and_gives_the_answers_of_single_requests() -> None:
    async with SimulatedClaude(quick(batch_s=20, time_scale=0.01)) as claude, sdk(claude) as client:
        created = await client.messages.batches.create(
            requests=[entry("a", "one"), entry("b", "two", max_tokens=0)]
        )
        assert (created.processing_status, created.request_counts.processing) == ("in_progress", 2)
        with pytest.raises(anthropic.AnthropicError):
            await client.messages.batches.results(created.id)
        batch = created
        while batch.processing_status != "ended":
            batch = await client.messages.batches.retrieve(created.id)
        results = [result async for result in await client.messages.batches.results(created.id)]
        single = await create(client, "one")
    assert (batch.request_counts.succeeded, batch.request_counts.errored) == (1, 1)
    assert batch.ended_at is not None
    good, bad = sorted(results, key=lambda result: result.custom_id)
    assert (good.custom_id, bad.custom_id) == ("a", "b")
    assert good.result.type == "succeeded"
    assert text_of(good.result.message) == text_of(single)
    assert good.result.message.usage.service_tier == "batch"
    assert bad.result.type == "errored"
    assert "max_tokens" in bad.result.error.error.message


async def test_a_batch_can_be_cancelled_listed_and_deleted() -> None:
    async with SimulatedClaude(quick(batch_s=10, time_scale=0.01)) as claude, sdk(claude) as client:
        first = await client.messages.batches.create(requests=[entry("a")])
        second = await client.messages.batches.create(requests=[entry("b")])
        assert (await client.messages.batches.cancel(second.id)).processing_status == "canceling"
        assert [batch.id async for batch in client.messages.batches.list()] == [second.id, first.id]
        while (await client.messages.batches.retrieve(second.id)).processing_status != "ended":
            pass
        (result,) = [line async for line in await client.messages.batches.results(second.id)]
        await client.messages.batches.delete(first.id)
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.batches.retrieve(first.id)
    assert result.result.type == "canceled"


async def test_a_batch_belongs_to_its_credential() -> None:
    async with (
        SimulatedClaude(quick()) as claude,
        sdk(claude) as client,
        sdk(claude, api_key="sk-another") as other,
    ):
        batch = await client.messages.batches.create(requests=[entry("a")])
        with pytest.raises(anthropic.NotFoundError):
            await other.messages.batches.retrieve(batch.id)
        assert [found async for found in other.messages.batches.list()] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"requests": []},
        {"requests": [{"custom_id": "a"}]},
        {"requests": ["x"]},
        {"requests": [entry("a"), entry("a")]},
        {"requests": [{"params": {}}]},
        {"requests": [{"custom_id": ["a"], "params": {}}]},
        {"requests": [entry("")]},
        {"requests": [entry("a.b")]},
        {"requests": [entry("a" * 65)]},
    ],
)
async def test_what_is_no_batch_is_turned_down(body: Any) -> None:
    async with SimulatedClaude(quick()) as claude:
        assert (await call(claude, "/v1/messages/batches", body)).status == 400


async def test_batches_are_bounded_and_other_paths_are_not_found() -> None:
    async with SimulatedClaude(quick(batches_max=1)) as claude, sdk(claude) as client:
        batch = await client.messages.batches.create(requests=[entry("a")])
        with pytest.raises(anthropic.RateLimitError) as full:
            await client.messages.batches.create(requests=[entry("a")])
        assert full.value.response.headers["retry-after"] == "60"
        assert (await call(claude, f"/v1/messages/batches/{batch.id}/other", method="GET")).status == 404
        assert (await call(claude, f"/v1/messages/batches/{batch.id}/results", method="GET")).status == 400


async def test_the_oldest_batch_is_forgotten_for_a_new_one_once_it_has_ended() -> None:
    async with SimulatedClaude(quick(batches_max=2, batch_s=0)) as claude, sdk(claude) as client:
        calls = client.messages.batches
        first, second, third = [await calls.create(requests=[entry("a")]) for _ in range(3)]
        assert [batch.id async for batch in calls.list()] == [third.id, second.id]
        with pytest.raises(anthropic.NotFoundError):
            await calls.retrieve(first.id)


async def test_a_batch_that_has_not_ended_is_not_deleted() -> None:
    async with SimulatedClaude(quick()) as claude, sdk(claude) as client:
        batch = await client.messages.batches.create(requests=[entry("a")])
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.batches.delete(batch.id)
        assert (await client.messages.batches.retrieve(batch.id)).processing_status == "in_progress"


async def test_creating_a_batch_has_a_limit_of_its_own_for_the_body() -> None:
    large, huge = ({"requests": [entry("a", "x" * size)]} for size in (3_000, 6_000))
    async with SimulatedClaude(quick(body_bytes_max=1_000, batch_bytes_max=5_000)) as claude:
        assert (await call(claude, "/v1/messages", asked("x" * 3_000))).status == 413
        assert (await call(claude, "/v1/messages/batches", large)).status == 200
        assert (await call(claude, "/v1/messages/batches", huge)).status == 413
    assert ClaudeConfig().batch_bytes_max == 256 * 1024 * 1024


async def test_times_of_a_batch_are_those_of_its_client() -> None:
    config = quick(batch_s=10, batch_expires_s=86_400, time_scale=0.001)
    async with SimulatedClaude(config) as claude, sdk(claude) as client:
        batch = await client.messages.batches.create(requests=[entry("a")])
    # Whole seconds, both rounded up.
    assert timedelta(seconds=86) <= batch.expires_at - batch.created_at <= timedelta(seconds=87)


@pytest.mark.parametrize(("version", "kind"), [("2023-06-01", "succeeded"), ("2026-10-21", "errored")])
async def test_requests_of_a_batch_know_the_version_of_the_batch(version: str, kind: str) -> None:
    body = {"requests": [entry("a", temperature=1)]}
    async with SimulatedClaude(quick(batch_s=0)) as claude:
        headers = {**HEADERS, "anthropic-version": version}
        batch = (await call(claude, "/v1/messages/batches", body, headers=headers)).json()
        response = await call(claude, f"/v1/messages/batches/{batch['id']}/results", method="GET")
    assert response.json()["result"]["type"] == kind


async def results_of(client: anthropic.AsyncAnthropic, *requests: Any) -> dict[str, Any]:
    """The results of a batch by custom id, in the order in which they came."""
    batch = await client.messages.batches.create(requests=requests)
    while batch.processing_status != "ended":
        batch = await client.messages.batches.retrieve(batch.id)
    lines = await client.messages.batches.results(batch.id)
    return {line.custom_id: line.result async for line in lines}


async def test_results_come_in_an_order_of_their_own_and_stay_as_they_are() -> None:
    names = [f"r{number}" for number in range(20)]
    script = Script(contains="look", text="Once.", times=1, tools=(ToolCall(name="look"),))
    async with SimulatedClaude(quick(batch_s=0, scripts=(script,))) as claude, sdk(claude) as client:
        batch = await client.messages.batches.create(requests=[entry(name, "look") for name in names])
        first: list[Any] = [line async for line in await client.messages.batches.results(batch.id)]
        second = [line async for line in await client.messages.batches.results(batch.id)]
    assert [line.custom_id for line in first] != names
    assert sorted(line.custom_id for line in first) == sorted(names)
    assert [line.to_dict() for line in first] == [line.to_dict() for line in second]
    assert sum(line.result.message.stop_reason == "tool_use" for line in first) == 1


async def test_what_takes_too_long_expires() -> None:
    config = quick(batch_s=60, batch_expires_s=10, time_scale=0.001)
    async with SimulatedClaude(config) as claude, sdk(claude) as client:
        results = await results_of(client, entry("a"), entry("b"))
    assert [result.type for result in results.values()] == ["expired", "expired"]


async def test_a_fault_hits_the_route_that_it_names() -> None:
    faults = (
        Fault(effects.Overloaded(), Match(route="batches.create"), times=1),
        Fault(effects.ErrorStatus(status=500), Match(route="batches.retrieve"), times=1),
        Fault(effects.ResetBeforeHead(), Match(route="batches.results"), times=1),
        Fault(effects.RateLimited(), Match(route="batches.cancel"), times=1),
        Fault(effects.Overloaded(), Match(route="batches.request", nth=1)),
        Fault(damage.Truncate(), Match(route="batches.cancel")),
    )
    async with SimulatedClaude(quick(*faults, batch_s=0)) as claude, sdk(claude) as client:
        calls = client.messages.batches
        with pytest.raises(anthropic.InternalServerError) as overloaded:
            await calls.create(requests=[entry("a")])
        batch = await calls.create(requests=[entry("a"), entry("b")])
        with pytest.raises(anthropic.InternalServerError):
            await calls.retrieve(batch.id)
        with pytest.raises(anthropic.APIConnectionError):
            await calls.results(batch.id)
        with pytest.raises(anthropic.RateLimitError):
            await calls.cancel(batch.id)
        await calls.cancel(batch.id)
        results: dict[str, Any] = {
            line.custom_id: line.result async for line in await calls.results(batch.id)
        }
        assert (await create(client)).stop_reason == "end_turn"
        faults_seen = [attempt.fault for attempt in claude.requests if attempt.fault]
    assert overloaded.value.status_code == 529
    assert (results["a"].type, results["a"].error.error.type) == ("errored", "overloaded_error")
    assert results["b"].type == "succeeded"
    assert faults_seen == ["overloaded", "status", "reset_before_head", "rate_limited", "truncate"]


async def errored(seed: int) -> tuple[set[str], int]:
    """Which of a hundred requests fail with a probability of a half, and how many the oracle counted."""
    fault = Fault(effects.Overloaded(), Match(route="batches.request", probability=0.5))
    async with SimulatedClaude(quick(fault, batch_s=0), seed=seed) as claude, sdk(claude) as client:
        results = await results_of(client, *(entry(str(number)) for number in range(100)))
        counted = claude.stats().faults["overloaded"]
    return {name for name, result in results.items() if result.type == "errored"}, counted


async def test_a_probability_is_drawn_for_every_request_of_a_batch_and_follows_from_the_seed() -> None:
    (first, counted), (again, _), (other, _) = [await errored(seed) for seed in (1, 1, 2)]
    assert 25 < len(first) < 75
    assert counted == len(first)
    assert first == again != other


def test_a_route_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"match\.route"):
        Match(route="batches")
