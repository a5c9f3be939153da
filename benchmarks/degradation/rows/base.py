"""What a row is: one way in which an application sends its tenants' prompts to the account."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Self

from benchmarks.degradation.account import Account, Offer
from benchmarks.degradation.journal import Journal
from benchmarks.degradation.trace import Prompt
from scheduler import Usage
from scheduler.errors import UpstreamError

SDK_RETRIES = 2
"""What the SDK does by itself."""


class Refusal(Exception):
    """The application refuses a prompt by itself."""


class TooLate(Exception):
    """A prompt's time was up."""


@dataclass(frozen=True)
class Setting:
    """What a row may know: the account's limits, how many tenants there are, what a deadline is, a clock.

    `clock` is None where time is real. `seed` is for whatever a row draws by itself.
    """

    offer: Offer
    tenants: int
    deadline_s: float
    seed: int
    now: Callable[[], int]
    clock: Any = None


class Row(ABC):
    """One way to share the account. `serve` returns once a prompt is answered, and raises otherwise."""

    name: ClassVar[str]

    def __init__(self, setting: Setting, account: Account, journal: Journal) -> None:
        self.setting, self.account, self.journal = setting, account, journal
        self.draw = random.Random(f"{self.name} {setting.seed}").random

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @abstractmethod
    async def serve(self, prompt: Prompt) -> None:
        """Get a prompt answered. Raises `Refusal`, `TooLate` or `UpstreamError`."""

    async def call_as_sdk(self, prompt: Prompt) -> Usage:
        """Call with the retries that the SDK makes unasked: at the named second, or after its backoff."""
        for retries in range(SDK_RETRIES + 1):
            try:
                return await self.account.call(prompt)
            except UpstreamError as error:
                if retries == SDK_RETRIES:
                    raise
                backoff = min(0.5 * 2.0**retries, 8.0) * (1 - 0.25 * self.draw())
                wait = error.retry_after or backoff
            await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")


@dataclass
class Guess:
    """How long answers will be: the mean of a tenant's past ones, beginning with what everybody's were.

    Nobody knows an answer's length beforehand. A tenant's mean counts as `trust` answers of everybody's mean
    until it has its own, and everybody's begins as `default`. What is expected is `margin` times the mean.
    """

    margin: float = 1.0
    default: int = 500
    trust: int = 4
    _sums: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    _all: list[int] = field(default_factory=lambda: [0, 0])

    def of(self, tenant: str) -> int:
        """Output tokens to expect of the tenant's next answer."""
        count, total = self._all
        everybody = (total + self.trust * self.default) / (count + self.trust)
        count, total = self._sums[tenant]
        return max(1, round(self.margin * (total + self.trust * everybody) / (count + self.trust)))

    def learn(self, tenant: str, output_tokens: int) -> None:
        """Take in the length of an answer that has ended."""
        for sums in (self._sums[tenant], self._all):
            sums[0] += 1
            sums[1] += output_tokens
