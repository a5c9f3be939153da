"""The state behind the server: limits, faults, scripts, cache, batches and the oracle, with one seed."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from typing import Any

from scheduler.testing.claude.config import ClaudeConfig
from scheduler.testing.claude.errors import Headers
from scheduler.testing.claude.faults import Fault, FaultDeck
from scheduler.testing.claude.limits import Limiter, Limits
from scheduler.testing.claude.models import COUNT_TOKENS_CLASS
from scheduler.testing.claude.oracle import Oracle
from scheduler.testing.claude.prompt import PromptCache
from scheduler.testing.claude.scripts import ScriptBook
from scheduler.testing.claude.timing import SimulatedTime, rfc3339


@dataclass(slots=True)
class Batch:
    """One message batch: its state follows from the simulated time, so nothing runs in the background.

    `results` are worked out once, when somebody asks after it has ended.
    """

    id: str
    number: int
    credential: str
    version: str
    requests: list[dict[str, Any]]
    created_ns: int
    created_wall_s: float
    cancelled: bool = False
    results: list[dict[str, Any]] | None = None


class Simulation:
    """What one simulated API knows. A reset sets clock and counts to zero, fills buckets, empties the log."""

    def __init__(self, config: ClaudeConfig, seed: int) -> None:
        """Start with a configuration; the same seed and the same order of requests give the same run."""
        self.seed = seed
        self.configure(config)

    def configure(self, config: ClaudeConfig) -> None:
        """Take a new configuration and start anew."""
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        config = self.config
        self.time = SimulatedTime(config.time_scale)
        self.oracle = Oracle(config)
        self.faults = FaultDeck(config.faults, self.seed)
        self.scripts = ScriptBook(config.scripts)
        self.cache = PromptCache(config.cached_prefixes_max)
        self._limiters: dict[tuple[str, str], Limiter] = {}
        self.batches: dict[str, Batch] = {}
        self._number = 0

    def add_faults(self, faults: tuple[Fault, ...]) -> None:
        """Put more faults behind those in force."""
        self.faults.add(faults)
        self.config = replace(self.config, faults=self.faults.faults)

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self.config = replace(self.config, faults=())
        self.faults = FaultDeck((), self.seed)

    def next_number(self) -> int:
        """Count a request."""
        self._number += 1
        return self._number

    def identifier(self, prefix: str, number: int) -> str:
        """Return an id of the prefix and 24 characters that follow from the seed and a number."""
        text = f"{self.seed}/{prefix}/{number}"
        return prefix + hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def draw(self, number: int, purpose: str) -> random.Random:
        """Return the dice of one request for one purpose."""
        return random.Random(f"{self.seed}/{number}/{purpose}")

    def limiter(self, credential: str, model_class: str) -> Limiter:
        """Return the buckets of a credential for a model class, full when they are new."""
        key = (credential, model_class)
        limiter = self._limiters.get(key)
        if limiter is None:
            while len(self._limiters) >= self.config.credentials_max:
                del self._limiters[next(iter(self._limiters))]
            limiter = self._limiters[key] = Limiter(self._limits(model_class), self.now_ns())
        return limiter

    def common_headers(self, request_id: str, content_type: str) -> Headers:
        """Return what every response carries."""
        return [
            ("content-type", content_type),
            ("request-id", request_id),
            ("anthropic-organization-id", self.config.organization_id),
        ]

    def rate_headers(self, limiter: Limiter) -> Headers:
        """Write the state of the buckets as Anthropic does; times are real."""
        headers = []
        wall_s = self.time.wall_s()
        for level in limiter.levels(self.now_ns()):
            prefix = f"anthropic-ratelimit-{level.name}"
            headers += [
                (f"{prefix}-limit", str(level.limit)),
                (f"{prefix}-remaining", str(level.remaining)),
                (f"{prefix}-reset", rfc3339(wall_s + self.time.real_s(level.full_in_ns))),
            ]
        return headers

    def _limits(self, model_class: str) -> Limits:
        limits = self.config.class_limits.get(model_class, self.config.limits)
        if model_class == COUNT_TOKENS_CLASS:
            # Only its number of requests is limited.
            return replace(
                limits,
                requests_per_minute=limits.count_tokens_per_minute,
                input_tokens_per_minute=None,
                output_tokens_per_minute=None,
                workspace_tokens_per_minute=None,
            )
        return limits

    def now_ns(self) -> int:
        """Return the simulated time in nanoseconds."""
        return self.time.simulated_ns(self.time.now_ns())
