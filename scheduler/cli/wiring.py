"""Joining the parts: an upstream, the SDK's client, an agent, and how a simulation tells tenants apart."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx2

from agent import Agent, Message, Reply, Sessions
from scheduler.cli.usage import UsageError
from scheduler.testing import ClaudeConfig, Latency, Script, SimulatedClaude

LOOPBACK_KEY = "simulated"
"""Any key will do for a simulation."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Whom to ask: a simulated Claude, or the API that the environment names."""

    simulated: bool
    model: str
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("--model: must not be empty")
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens: must be at least 1, got {self.max_tokens}")

    @asynccontextmanager
    async def agent(
        self, config: ClaudeConfig | None = None, sessions: Sessions | None = None
    ) -> AsyncIterator[Wired]:
        """An agent on that upstream, and the simulation if it is one. Sessions are in memory unless given."""
        async with AsyncExitStack() as stack:
            simulation = None
            if self.simulated:
                simulation = await stack.enter_async_context(SimulatedClaude(config or quick(), seed=1))
            client = await stack.enter_async_context(self._client(simulation))
            local = simulation is not None or is_loopback(str(client.base_url))
            agent = Agent(
                client,
                model=self.model,
                max_tokens=self.max_tokens,
                headers=labels if local else None,
                sessions=sessions,
            )
            yield agent, simulation

    def _client(self, simulation: SimulatedClaude | None) -> anthropic.AsyncAnthropic:
        if simulation is not None:
            # The SDK's own HTTP client obeys proxy settings even for the loopback interface.
            direct = httpx2.AsyncClient(trust_env=False, timeout=600.0, limits=CONNECTIONS)
            return anthropic.AsyncAnthropic(
                api_key=LOOPBACK_KEY, base_url=simulation.base_url, max_retries=0, http_client=direct
            )
        key = os.environ.get("ANTHROPIC_API_KEY")
        if not key:
            raise UsageError("ANTHROPIC_API_KEY: is not set; set it, or ask for the simulated Claude")
        return anthropic.AsyncAnthropic(api_key=key, max_retries=0)


Wired = tuple[Agent, SimulatedClaude | None]

CONNECTIONS = httpx2.Limits(max_connections=1000, max_keepalive_connections=1000)


def text_of(result: Any) -> str:
    """A result as text: a reply's, or JSON where a worker has another handler than an agent."""
    return result.text if isinstance(result, Reply) else json.dumps(result, ensure_ascii=False)


def labels(message: Message) -> dict[str, str]:
    """Headers by which the simulation's log tells tenants and jobs apart; never sent to the real API."""
    name = message.tenant.encode("ascii", "backslashreplace").decode()
    return {"x-waitline-tenant": name, "x-waitline-job": message.job_id or ""}


def is_loopback(base_url: str) -> bool:
    """Whether a base URL is on this machine."""
    return httpx2.URL(base_url).host in ("127.0.0.1", "localhost", "::1")


def quick(*scripts: Script) -> ClaudeConfig:
    """A simulated Claude that answers within a tenth of a second and has no limits in the way."""
    latency = Latency(ttft_base_s=0.03, prefill_tps=None, decode_tps=800.0, jitter=0.1)
    return ClaudeConfig(latency=latency, reply_tokens=12, scripts=scripts, attempts_max=2_000_000)
