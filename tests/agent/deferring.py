"""A scheduler whose jobs are deferred to batches of the simulated Claude."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agent import BatchDesk
from scheduler import Answer, Policy, Rung, Scheduler, Signal, Ticket
from scheduler.testing import ClaudeConfig, Fault, Match, SimulatedClaude, effects
from tests.agent.claudes import connected, quick, sent

DEFERRING = Policy(max_wait=None, ladder=[Rung(0.5, defer="batch")])
BATCHES = "/v1/messages/batches"


def slow(*faults: Fault, **fields: Any) -> ClaudeConfig:
    """Batches that take 0.1 s, and what goes wrong with the calls about them."""
    return quick(**{"batch_s": 10.0, "time_scale": 0.01, **fields, "faults": faults})


def on(route: str, effect: effects.Effect, **fields: Any) -> Fault:
    times = fields.pop("times", None)
    return Fault(effect, Match(route=f"batches.{route}", **fields), times=times)


@asynccontextmanager
async def deferring(
    config: ClaudeConfig | None = None,
    *,
    desk: dict[str, Any] | None = None,
    paused: float = 60.0,
    **options: Any,
) -> AsyncIterator[tuple[SimulatedClaude, Scheduler, BatchDesk]]:
    """A scheduler whose only gate is paused for some seconds, so that its jobs are deferred."""
    agent_options = {name: options.pop(name) for name in ("tools", "headers") if name in options}
    quickly = {"window": 0.05, "poll": 0.02, "draw": lambda: 0.0, **(desk or {})}
    async with (
        connected(config or slow(), **agent_options) as (claude, agent),
        BatchDesk(agent, **quickly) as at,
        Scheduler(agent.handle, **{"policy": DEFERRING, "deferred": at.handle, **options}) as scheduler,
    ):
        await pause(scheduler, paused)
        yield claude, scheduler, at


async def pause(scheduler: Scheduler, seconds: float = 60.0) -> None:
    """Have the gate paused, as a 429 does."""
    async with scheduler.admit("nobody") as grant:
        grant.hear(Signal(Answer.RATE_LIMITED, seconds))


async def crowd(scheduler: Scheduler, *prompts: str, **options: Any) -> list[Ticket]:
    """A job of a tenant of its own for each prompt."""
    return [await scheduler.enqueue(f"t{number}", prompt, **options) for number, prompt in enumerate(prompts)]


async def replies(tickets: list[Ticket]) -> list[Any]:
    return await asyncio.gather(*(ticket.result() for ticket in tickets), return_exceptions=True)


def calls(claude: SimulatedClaude, tail: str = "", method: str = "POST") -> list[Any]:
    """The calls about batches that the upstream got."""
    return [
        attempt
        for attempt in claude.requests
        if attempt.method == method and attempt.path.startswith(BATCHES) and attempt.path.endswith(tail)
    ]


def created(claude: SimulatedClaude) -> list[Any]:
    return [attempt for attempt in calls(claude) if attempt.path == BATCHES]


def bodies(claude: SimulatedClaude) -> list[list[dict[str, Any]]]:
    """The requests of each batch."""
    return [sent(claude, claude.requests.index(attempt))["requests"] for attempt in created(claude)]
