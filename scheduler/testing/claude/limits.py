"""Anthropic's three rate limits, as plain token buckets in exact integers. Time is always an argument."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from scheduler.testing.claude.loading import build, require

MINUTE_NS = 60_000_000_000
ROUNDED_FROM = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one credential may use of one model class, per minute of simulated time; `None` is unlimited.

    `burst_s` is how many seconds' worth a bucket holds: 60 lets a whole minute's limit go at once, 1 models a
    per-minute limit that is enforced per second. `workspace_tokens_per_minute` bounds input and output
    together. `charge_refused` makes a refused request cost one request. `retry_after_ms` adds the exact wait
    in milliseconds beside the whole seconds of `retry-after`, so that scaled runs need not wait a real
    second.
    """

    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    workspace_tokens_per_minute: int | None = None
    count_tokens_per_minute: int | None = None
    burst_s: float = 60.0
    charge_refused: bool = False
    retry_after_ms: bool = False

    def __post_init__(self) -> None:
        """Refuse limits below one and a burst that is not positive."""
        for name, limit in (
            ("requests_per_minute", self.requests_per_minute),
            ("input_tokens_per_minute", self.input_tokens_per_minute),
            ("output_tokens_per_minute", self.output_tokens_per_minute),
            ("workspace_tokens_per_minute", self.workspace_tokens_per_minute),
            ("count_tokens_per_minute", self.count_tokens_per_minute),
        ):
            require(limit is None or limit >= 1, f"limits.{name}", limit, "must be at least 1")
        require(0 < self.burst_s <= 3600, "limits.burst_s", self.burst_s, "must be above 0 and at most 3600")

    @classmethod
    def from_mapping(cls, values: object, *, where: str = "limits") -> Limits:
        """Build from a JSON or TOML table; raises `ConfigError`."""
        return build(cls, values, where)


class Bucket:
    """One continuously refilled bucket, full at the start.

    The level is counted in permits times the nanoseconds of a minute: a refill is then `limit * elapsed`,
    exact.
    """

    __slots__ = ("_at_ns", "_capacity", "_level", "limit")

    def __init__(self, limit: int, burst_s: float, now_ns: int) -> None:
        """Fill the bucket with `burst_s` seconds of its limit, at least one permit."""
        self.limit = limit
        self._capacity = max(MINUTE_NS, int(limit * Fraction(str(burst_s)) * (MINUTE_NS // 60)))
        self._level = self._capacity
        self._at_ns = now_ns

    def refill(self, now_ns: int) -> None:
        """Bring the level up to a time; a time in the past changes nothing."""
        if now_ns > self._at_ns:
            self._level = min(self._capacity, self._level + self.limit * (now_ns - self._at_ns))
            self._at_ns = now_ns

    def take(self, permits: int) -> None:
        """Take permits, or give back a negative number; the level may go below zero, not above full."""
        self._level = min(self._capacity, self._level - permits * MINUTE_NS)

    def wait_ns(self, permits: int) -> int:
        """Return how long until the level reaches `permits`; with 0, until it is above zero."""
        short = max(permits * MINUTE_NS, 1) - self._level
        return max(0, -(-short // self.limit))

    @property
    def capacity(self) -> int:
        """Whole permits in a full bucket."""
        return self._capacity // MINUTE_NS

    @property
    def remaining(self) -> int:
        """Whole permits left, never negative."""
        return max(0, self._level // MINUTE_NS)

    @property
    def full_in_ns(self) -> int:
        """Nanoseconds until the bucket is full."""
        return -(-(self._capacity - self._level) // self.limit)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which limit refused, its size per minute, and the simulated nanoseconds until the request would fit."""

    name: str
    limit: int
    wait_ns: int


@dataclass(frozen=True, slots=True)
class Level:
    """One limit as the response headers tell it; `full_in_ns` is simulated."""

    name: str
    limit: int
    remaining: int
    full_in_ns: int


class Limiter:
    """The buckets of one (credential, model class)."""

    def __init__(self, limits: Limits, now_ns: int) -> None:
        """Start every configured bucket full."""
        self.limits = limits
        named = (
            ("requests", limits.requests_per_minute),
            ("input-tokens", limits.input_tokens_per_minute),
            ("output-tokens", limits.output_tokens_per_minute),
            ("tokens", limits.workspace_tokens_per_minute),
        )
        self._buckets = {
            name: Bucket(limit, limits.burst_s, now_ns) for name, limit in named if limit is not None
        }

    def admit(self, now_ns: int, input_tokens: int) -> Refusal | None:
        """Charge one request and its estimated input, or nothing and name the limit that binds longest."""
        needs = {"requests": 1, "input-tokens": input_tokens, "output-tokens": 0, "tokens": input_tokens}
        for bucket in self._buckets.values():
            bucket.refill(now_ns)
        if any(bucket.wait_ns(needs[name]) for name, bucket in self._buckets.items()):
            # Charged before the wait is worked out: who waits as long as it is told must get in.
            if self.limits.charge_refused:
                self._take("requests", 1)
            refusals = (
                Refusal(name, bucket.limit, bucket.wait_ns(needs[name]))
                for name, bucket in self._buckets.items()
            )
            return max(refusals, key=lambda refusal: refusal.wait_ns)
        for name, permits in needs.items():
            self._take(name, permits)
        return None

    def charge_output(self, now_ns: int, tokens: int) -> None:
        """Charge output as it is produced; a running request is never cut."""
        for name in ("output-tokens", "tokens"):
            self._at(name, now_ns, tokens)

    def correct_input(self, now_ns: int, estimate: int, actual: int) -> None:
        """Replace the input estimate by what really counted."""
        for name in ("input-tokens", "tokens"):
            self._at(name, now_ns, actual - estimate)

    def levels(self, now_ns: int) -> Iterator[Level]:
        """Yield what the response headers say, `tokens` included."""
        levels, capacities = {}, {}
        for name, bucket in self._buckets.items():
            bucket.refill(now_ns)
            levels[name] = Level(name, bucket.limit, bucket.remaining, bucket.full_in_ns)
            capacities[name] = bucket.capacity
        parts = [levels[name] for name in ("input-tokens", "output-tokens") if name in levels]
        if parts and "tokens" not in levels:
            levels["tokens"] = Level(
                "tokens",
                sum(part.limit for part in parts),
                sum(part.remaining for part in parts),
                max(part.full_in_ns for part in parts),
            )
            capacities["tokens"] = sum(capacities[part.name] for part in parts)
        for name, level in levels.items():
            yield _rounded(level, capacities[name])

    def _at(self, name: str, now_ns: int, permits: int) -> None:
        if name in self._buckets:
            self._buckets[name].refill(now_ns)
            self._take(name, permits)

    def _take(self, name: str, permits: int) -> None:
        if permits and name in self._buckets:
            self._buckets[name].take(permits)


def _rounded(level: Level, capacity: int) -> Level:
    """Round remaining tokens to the nearest thousand, as the real headers do for large buckets in use."""
    if level.name == "requests" or capacity < ROUNDED_FROM or level.full_in_ns == 0:
        return level
    remaining = min(capacity, (level.remaining + 500) // 1000 * 1000)
    return Level(level.name, level.limit, remaining, level.full_in_ns)
