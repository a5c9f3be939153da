"""Message batches: they end by themselves, and answer as single requests do."""

from typing import Any

import anthropic
import pytest

from scheduler.testing import SimulatedClaude
from tests.testing.claude_client import asked, call, create, quick, sdk, text_of


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
    good, bad = results
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
    ],
)
async def test_what_is_no_batch_is_turned_down(body: Any) -> None:
    async with SimulatedClaude(quick()) as claude:
        assert (await call(claude, "/v1/messages/batches", body)).status == 400


async def test_batches_are_bounded_and_other_paths_are_not_found() -> None:
    async with SimulatedClaude(quick(batches_max=1)) as claude, sdk(claude) as client:
        batch = await client.messages.batches.create(requests=[entry("a")])
        with pytest.raises(anthropic.RateLimitError):
            await client.messages.batches.create(requests=[entry("a")])
        assert (await call(claude, f"/v1/messages/batches/{batch.id}/other", method="GET")).status == 404
        assert (await call(claude, f"/v1/messages/batches/{batch.id}/results", method="GET")).status == 400
