"""An agent behind a scheduler, in virtual time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agent import Agent
from scheduler import Quota, Rate, Scheduler
from scheduler.testing.virtual import VirtualClock
from tests.agent.claudes import InMemoryClaude, in_memory, tool

LOOK = ["Wait.", {"name": "look"}]
DONE = ["Seen."]
TOKENS = Rate.per_minute(6000)
WIDE = Quota(Rate(2, burst=100), input_tokens=TOKENS, output_tokens=TOKENS)
"""So wide that nobody waits, and what was used shows in the levels."""


@asynccontextmanager
async def scheduled(
    *answers: Any, hooked: bool = True, **options: Any
) -> AsyncIterator[tuple[InMemoryClaude, Agent, Scheduler]]:
    """An agent in memory behind a scheduler in virtual time."""
    async with (
        in_memory(*answers, tools=[tool()]) as (claude, agent),
        Scheduler(agent.handle, clock=VirtualClock(), **options) as scheduler,
    ):
        if hooked:
            agent.on_before_message(scheduler.on_before_message)
        yield claude, agent, scheduler


async def used(scheduler: Scheduler, quota: Quota = WIDE) -> tuple[float, ...]:
    """What of a tenant's bursts is gone; nothing if the tenant is forgotten. Only while no time passes."""
    levels = (await scheduler.statistics("acme")).levels
    bursts = {"requests": 100, "input_tokens": 6000, "output_tokens": 6000}
    return tuple(bursts[name] - levels.get(name, bursts[name]) for name in bursts)
