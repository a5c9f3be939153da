"""Counting a prompt's tokens by the API, for those who would rather reserve exactly."""

import traceback

import pytest

from agent import Agent
from scheduler import Estimates, Quota, Rate, Scheduler, UpstreamError
from tests.agent.claudes import SECRET, connected, tool

GATE = Quota(input_tokens=Rate.per_minute(100_000), output_tokens=Rate.per_minute(100_000))


async def test_the_api_counts_system_and_tools_too() -> None:
    async with connected(system="Be short.", tools=[tool()]) as (_, agent):
        bare = Agent(agent._setup.client, model="claude-haiku-4-5")
        assert await bare.count("hello " * 100) == 157
        assert await agent.count("hello " * 100) > 157
        assert await bare.count([{"type": "text", "text": "hello " * 100}]) == 157


async def test_a_scheduler_reserves_what_the_api_counts() -> None:
    async with connected() as (_, agent):
        costs = []

        async def handler(job):  # type: ignore[no-untyped-def]
            costs.append(job.cost)
            return await agent.handle(job)

        async with Scheduler(handler, gates=GATE, estimates=Estimates(agent.count)) as scheduler:
            reply = await scheduler.submit("acme", "hello " * 100)
            await scheduler.submit("acme", "hello " * 100)
            levels = (await scheduler.statistics()).gates[""].levels
        assert costs[0].input_tokens == costs[1].input_tokens == reply.usage.input_tokens == 157
        assert costs[1].output_tokens == 1.5 * reply.usage.output_tokens
        assert 100_000 - 314 <= levels["input_tokens"] <= 100_000


async def test_an_api_that_cannot_count_is_an_upstream_error_without_the_prompt() -> None:
    async with connected() as (_, agent):
        wrong = Agent(agent._setup.client, model="no-such-model")
        with pytest.raises(UpstreamError) as caught:
            await wrong.count(SECRET)
        assert caught.value.kind == "not_found"
        assert SECRET not in "".join(traceback.format_exception(caught.value))
