"""The one account that everybody shares, without HTTP: limits, refusals and service times as on loopback.

The buckets are those of the simulated Claude (`scheduler.testing.claude.limits`), so a limit means the same
here as there. Output is charged token by token as it is produced; since only admissions look at the level,
what every running call has produced is worked out when one of them asks, or ends.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from benchmarks.degradation.journal import Journal
from benchmarks.degradation.trace import Prompt, Trace
from benchmarks.measure import NS
from scheduler import Answer, Signal, Usage
from scheduler.errors import UpstreamError
from scheduler.testing.claude.limits import Limiter, Limits
from scheduler.upstreams.failures import Kind

SHAPE = (1_000, 2_000_000, 400_000)
"""Requests, input and output tokens a minute of one model class in Anthropic's first tier."""

DIMENSIONS = ("requests", "input tokens", "output tokens")

NAMES = ("requests", "input_tokens", "output_tokens")

OVERLOAD = 2
"""How many times its capacity an account may run before it answers 529."""


@dataclass(frozen=True)
class Offer:
    """What an account allows a minute, and the load that a trace is on it.

    The trace stays as it is, and the limits are scaled: the tier's three in one proportion, such that the
    demand for the scarcest of them, `binding`, is `load` times its limit.
    """

    load: float
    per_minute: tuple[int, int, int]
    binding: int
    burst_s: float
    capacity: int | None = None

    @classmethod
    def of(cls, trace: Trace, load: float, burst_s: float, capacity: int | None = None) -> Offer:
        """Scale the tier for a trace."""
        pressure = [demand / limit for demand, limit in zip(trace.per_minute(), SHAPE, strict=True)]
        factor = max(pressure) / load
        requests, input_tokens, output_tokens = (max(1, round(limit * factor)) for limit in SHAPE)
        scaled = (requests, input_tokens, output_tokens)
        return cls(load, scaled, pressure.index(max(pressure)), burst_s, capacity)

    @property
    def limits(self) -> Limits:
        """As the simulated Claude is configured."""
        requests, input_tokens, output_tokens = self.per_minute
        return Limits(
            requests_per_minute=requests,
            input_tokens_per_minute=input_tokens,
            output_tokens_per_minute=output_tokens,
            burst_s=self.burst_s,
        )

    def burst(self, dimension: int) -> int:
        """Whole permits that a full bucket holds."""
        return max(1, math.floor(self.per_minute[dimension] * self.burst_s / 60))

    def cost(self, amounts: tuple[int, ...]) -> float:
        """Seconds of the account that a call takes: of the limit that it takes longest to refill."""
        return max(amount * 60 / limit for amount, limit in zip(amounts, self.per_minute, strict=True))


@dataclass(eq=False, slots=True)
class Running:
    """One call under way: when its first token comes, the pace, and the tokens charged so far."""

    first: int
    per_token: int
    tokens: int
    charged: int = 0

    def produced(self, now: int) -> int:
        """Tokens by `now`."""
        return min(self.tokens, max(0, (now - self.first) // self.per_token))


LOOK = 64
"""Output tokens after which whoever watches a call is told how many there are, as an agent does."""


class Watcher(Protocol):
    """Who hears of the head of an answer and of its output as it comes: a `Job`."""

    def hear(self, signal: Signal) -> None:
        """How the account took the call, with what the headers say."""

    def grow(self, output_tokens: int) -> None:
        """How many output tokens there are already."""


class Account:
    """Answers calls, or refuses them with the error that the SDK adapter makes of such an answer.

    `aside`: of another model class than the one whose use is measured.
    """

    def __init__(self, offer: Offer, now: Callable[[], int], journal: Journal, aside: bool = False) -> None:
        self._offer, self._now, self._journal, self._aside = offer, now, journal, aside
        self._limiter = Limiter(offer.limits, now())
        self._running: set[Running] = set()

    async def call(
        self, prompt: Prompt, watcher: Watcher | None = None, max_tokens: int | None = None
    ) -> Usage:
        """Answer a prompt, which takes its time. Raises `UpstreamError` with status 429 or 529."""
        if max_tokens is not None and max_tokens < prompt.output_tokens:
            prompt = replace(prompt, output_tokens=max_tokens)
        now = self._now()
        self._produce(now)
        self._admit(prompt, now, watcher)
        head = self._signal(Answer.ACCEPTED, now)
        per_token = prompt.per_token
        if self._offer.capacity is not None:
            per_token = round(per_token * max(1.0, (len(self._running) + 1) / self._offer.capacity))
        call = Running(now + prompt.first, per_token, prompt.output_tokens)
        self._running.add(call)
        self._journal.begun(prompt, self._aside)
        try:
            if watcher is not None:
                await self._sleep_until(call.first)
                watcher.hear(head)
                for produced in range(LOOK, prompt.output_tokens, LOOK):
                    await self._sleep_until(call.first + per_token * produced)
                    watcher.grow(produced)
            await self._sleep_until(call.first + per_token * prompt.output_tokens)
        finally:
            self._produce(self._now())
            self._running.discard(call)
        return Usage(*prompt.amounts)

    def _signal(self, answer: Answer, now: int, after: float | None = None) -> Signal:
        """What the headers of an answer say now."""
        levels = {level.name.replace("-", "_"): level for level in self._limiter.levels(now)}
        named = [name for name in NAMES if name in levels]
        limits = {name: levels[name].limit for name in named}
        return Signal(answer, after, limits, {name: levels[name].remaining for name in named})

    def _admit(self, prompt: Prompt, now: int, watcher: Watcher | None) -> None:
        capacity = self._offer.capacity
        if capacity is not None and len(self._running) >= OVERLOAD * capacity:
            self._journal.refused(prompt, 529)
            if watcher is not None:
                watcher.hear(Signal(Answer.OVERLOADED))
            raise UpstreamError(Kind.OVERLOADED, 529, "overloaded_error")
        refusal = self._limiter.admit(now, prompt.input_tokens)
        if refusal is not None:
            self._journal.refused(prompt, 429, refusal.name)
            after = max(1, -(-refusal.wait_ns // NS))
            if watcher is not None:
                watcher.hear(self._signal(Answer.RATE_LIMITED, now, float(after)))
            raise UpstreamError(Kind.RATE_LIMITED, 429, "rate_limit_error", retry_after=float(after))

    def _produce(self, now: int) -> None:
        """Charge what has been produced since somebody last looked."""
        fresh = 0
        for call in self._running:
            produced = call.produced(now)
            fresh += produced - call.charged
            call.charged = produced
        if fresh:
            self._limiter.charge_output(now, fresh)

    async def _sleep_until(self, due: int) -> None:
        # A timer may fire early by its resolution, and the last token would then be missing.
        while (left := due - self._now()) > 0:  # noqa: ASYNC110 - what it waits for is the time
            await asyncio.sleep(left / NS)
