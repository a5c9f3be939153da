"""One call through the real SDK to the simulated Claude."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from anthropic import AsyncAnthropic

from scheduler.testing import ClaudeConfig, Fault, Latency, SimulatedClaude
from scheduler.testing.claude.effects import Effect
from scheduler.upstreams.claude import Call, unretried

MODEL = "claude-haiku-4-5"
SECRET = "the-secret-prompt"


def quick(*effects: Effect, **fields: Any) -> ClaudeConfig:
    """Answers of twelve words that take no time, and what goes wrong with them."""
    faults = tuple(Fault(effect) for effect in effects)
    return ClaudeConfig(**{"latency": Latency.none(), "reply_tokens": 12, "faults": faults, **fields})


@asynccontextmanager
async def connected(
    config: ClaudeConfig, **options: Any
) -> AsyncIterator[tuple[SimulatedClaude, AsyncAnthropic]]:
    """A simulated Claude and a client of it with the retries that the SDK has by default."""
    async with SimulatedClaude(config) as claude:
        arguments = {"api_key": "sk-test", "base_url": claude.base_url, **options}
        async with AsyncAnthropic(**arguments) as client:
            yield claude, client


def request(prompt: str = SECRET, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL, "max_tokens": 100, "messages": messages, **fields}


async def read(call: Call) -> list[str]:
    """Make a call to its end and return its deltas."""
    async with call:
        return [text async for text in call]


async def complete(client: AsyncAnthropic, **fields: Any) -> Call:
    """Make one call to its end."""
    call = Call(unretried(client), request(**fields))
    await read(call)
    return call


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something has happened; the test's time limit bounds it."""
    while not condition():  # noqa: ASYNC110 - what is waited for happens on the other side of a socket
        await asyncio.sleep(0.002)
