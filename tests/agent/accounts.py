"""A simulated account in virtual time: the real SDK talks to it, without a socket."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from anthropic import AsyncAnthropic

from agent import Agent
from scheduler import Scheduler
from scheduler.testing import Limits
from scheduler.testing.claude.limits import Limiter
from scheduler.testing.virtual import VirtualClock
from tests.agent.claudes import MODEL, events, make_agent

NS = 1_000_000_000


class Account(httpx2.AsyncBaseTransport):
    """Answers by the limits of an account, with its headers, after `ttft` seconds, in `length` seconds.

    `refuse`: asked first, with the time; a status, headers and an error code that it returns are the answer.
    `calls`: (time, status) of every call, in order; `limits` may be replaced while it runs.
    """

    def __init__(self, limits: Limits, refuse: Callable[[float], Any] | None = None) -> None:
        self.limiter = Limiter(limits, 0)
        self.refuse = refuse
        self.ttft, self.length, self.output_tokens = 0.4, 1.0, 20
        self.calls: list[tuple[float, int]] = []
        self.running = self.peak = 0

    def now(self) -> int:
        return round(asyncio.get_running_loop().time() * NS)

    def statuses(self, status: int) -> list[float]:
        """When calls came that got this status."""
        return [at for at, got in self.calls if got == status]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        at = self.now()
        told = self.refuse(at / NS) if self.refuse is not None else None
        if told is not None:
            status, headers, code = told
            self.calls.append((at / NS, status))
            await asyncio.sleep(0.02)
            return httpx2.Response(status, headers=headers, json=envelope(status, code))
        refusal = self.limiter.admit(at, 10)
        if refusal is not None:
            self.calls.append((at / NS, 429))
            wait = {"retry-after": str(max(1, -(-refusal.wait_ns // NS))), **self.headers()}
            await asyncio.sleep(0.02)
            return httpx2.Response(429, headers=wait, json=envelope(429, None))
        self.calls.append((at / NS, 200))
        headers = {"content-type": "text/event-stream", **self.headers()}
        self.running += 1
        self.peak = max(self.peak, self.running)
        await asyncio.sleep(self.ttft)
        return httpx2.Response(200, headers=headers, stream=Answer(self))

    def headers(self) -> dict[str, str]:
        found = {}
        for level in self.limiter.levels(self.now()):
            found[f"anthropic-ratelimit-{level.name}-limit"] = str(level.limit)
            found[f"anthropic-ratelimit-{level.name}-remaining"] = str(level.remaining)
        return found


class Answer(httpx2.AsyncByteStream):
    """The events of one answer: the first at once, the others at its end."""

    def __init__(self, account: Account) -> None:
        self.account = account

    async def __aiter__(self) -> AsyncIterator[bytes]:
        first, *others = events(["Hello."], 10, self.account.output_tokens)
        yield first
        await asyncio.sleep(self.account.length - self.account.ttft)
        self.account.limiter.charge_output(self.account.now(), self.account.output_tokens)
        for piece in others:
            yield piece

    async def aclose(self) -> None:
        self.account.running -= 1


def envelope(status: int, code: str | None) -> dict[str, Any]:
    types = {429: "rate_limit_error", 529: "overloaded_error"}
    error: dict[str, Any] = {"type": types.get(status, "api_error"), "message": "no"}
    if code is not None:
        error["details"] = {"error_code": code}
    return {"type": "error", "error": error}


@asynccontextmanager
async def behind(
    account: Account, model: str = MODEL, **options: Any
) -> AsyncIterator[tuple[Agent, Scheduler]]:
    """An agent on the account, and a scheduler that runs it in virtual time."""
    async with httpx2.AsyncClient(transport=account) as http:
        client = AsyncAnthropic(api_key="sk-test", base_url="http://claude.test", http_client=http)
        agent = make_agent(client, draw=random.Random(7).random, model=model)
        # The SDK finds this out in a thread, before its first request; virtual time knows no threads.
        agent._setup.client._platform = "Linux"
        async with Scheduler(agent.handle, clock=VirtualClock(), **options) as scheduler:
            yield agent, scheduler
