"""The configuration of the simulated API."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scheduler.testing.claude.faults import Fault
from scheduler.testing.claude.limits import Limits
from scheduler.testing.claude.loading import SECRET, ConfigError, build, require, require_header
from scheduler.testing.claude.models import COUNT_TOKENS_CLASS, MODELS
from scheduler.testing.claude.scripts import Script

SECRET_HEADERS = frozenset({"authorization", "x-api-key", "proxy-authorization", "cookie"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long answers take, in simulated time.

    Time to first token: `ttft_base_s` plus the uncached input over `prefill_tps`, times a lognormal factor of
    sigma `jitter`. Then `decode_tps` output tokens per second; `None` for either speed takes no time. Above
    `capacity` running requests decoding slows down in proportion, above twice that there is a 529. A content
    delta carries `chunk_tokens_min` to `chunk_tokens_max` tokens, and every `ping_every_s` there is a ping.
    """

    ttft_base_s: float = 0.4
    prefill_tps: float | None = 10_000.0
    decode_tps: float | None = 80.0
    jitter: float = 0.25
    capacity: int | None = None
    chunk_tokens_min: int = 1
    chunk_tokens_max: int = 4
    ping_every_s: float = 15.0

    def __post_init__(self) -> None:
        """Refuse speeds that are not positive, and the like."""
        for name, value, least in (
            ("ttft_base_s", self.ttft_base_s, 0), ("jitter", self.jitter, 0), ("capacity", self.capacity, 1),
            ("chunk_tokens_min", self.chunk_tokens_min, 1), ("ping_every_s", self.ping_every_s, 0.001),
            ("prefill_tps", self.prefill_tps, 0.001), ("decode_tps", self.decode_tps, 0.001),
        ):  # fmt: skip
            require(
                value is None or least <= value < 1e12, f"latency.{name}", value, f"must be at least {least}"
            )
        largest = self.chunk_tokens_max
        require(
            largest >= self.chunk_tokens_min,
            "latency.chunk_tokens_max",
            largest,
            "must not be below the minimum",
        )

    @classmethod
    def none(cls) -> Latency:
        """Answers that take no time."""
        return cls(ttft_base_s=0.0, prefill_tps=None, decode_tps=None, jitter=0.0)

    @classmethod
    def from_mapping(cls, values: object, *, where: str = "latency") -> Latency:
        """Build from a JSON or TOML table; raises `ConfigError`."""
        return build(cls, values, where)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaudeConfig:
    """Everything that can be set.

    `time_scale` multiplies every wait and the time of the buckets: 0.01 makes it a hundred times faster.

    `limits` holds for every model class without an entry in `class_limits`; `models` maps names to classes. A
    reply has `reply_tokens` output tokens, or a lognormal draw around `reply_tokens_median`, and never more
    than `max_tokens`. `api_keys` is who may call; `None` is everybody. A batch takes `batch_s`; what has not
    ended after `batch_expires_s` expires; of more than `batches_max` the oldest is forgotten if it has ended.

    The oracle takes tenant and job from the first of these headers that was sent, keeps the headers of
    `record_headers` (`*`: all but credentials), and bodies only with `keep_bodies`. With `finish_abandoned`
    work goes on for clients that have left. The last fields bound memory; creating a batch has a limit of its
    own for its body.
    """

    latency: Latency = field(default_factory=Latency)
    limits: Limits = field(default_factory=Limits)
    class_limits: Mapping[str, Limits] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=lambda: dict(MODELS))
    scripts: tuple[Script, ...] = ()
    faults: tuple[Fault, ...] = ()
    time_scale: float = 1.0
    reply_tokens: int | None = None
    reply_tokens_median: int = 150
    reply_tokens_sigma: float = 0.6
    batch_s: float = 60.0
    batch_expires_s: float = 86_400.0
    api_keys: tuple[str, ...] | None = field(default=None, repr=False, metadata=SECRET)
    organization_id: str = "00000000-0000-4000-8000-000000000000"
    tenant_headers: tuple[str, ...] = ("x-waitline-tenant", "x-tenant-id")
    job_headers: tuple[str, ...] = ("x-waitline-job",)
    record_headers: tuple[str, ...] = ()
    keep_bodies: bool = False
    finish_abandoned: bool = False
    attempts_max: int = 200_000
    credentials_max: int = 10_000
    cached_prefixes_max: int = 10_000
    batches_max: int = 1_000
    connections_max: int = 10_000
    body_bytes_max: int = 32 * 1024 * 1024
    batch_bytes_max: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse what cannot work; raises `ConfigError` naming the field and the value."""
        require(
            1e-6 <= self.time_scale <= 1e3, "time_scale", self.time_scale, "must be from 0.000001 to 1000"
        )
        tokens = self.reply_tokens
        require(tokens is None or tokens >= 1, "reply_tokens", tokens, "must be at least 1")
        require_header("organization_id", self.organization_id)
        sigma = self.reply_tokens_sigma
        require(0 <= sigma <= 5, "reply_tokens_sigma", sigma, "must be from 0 to 5")
        for name in ("batch_s", "batch_expires_s"):
            value = getattr(self, name)
            require(0 <= value <= 86_400, name, value, "must be from 0 to 86400")
        for name in (
            "reply_tokens_median", "attempts_max", "credentials_max", "cached_prefixes_max", "batches_max",
            "connections_max", "body_bytes_max", "batch_bytes_max",
        ):  # fmt: skip
            value = getattr(self, name)
            require(value >= 1, name, value, "must be at least 1")
        for name in self.class_limits:
            known = {*self.models.values(), COUNT_TOKENS_CLASS}
            require(name in known, "class_limits", name, f"must be one of {', '.join(sorted(known))}")
        for name in ("tenant_headers", "job_headers", "record_headers"):
            for header in getattr(self, name):
                require(header == header.lower(), name, header, "must be in lower case")
                require(header not in SECRET_HEADERS, name, header, "must not be a credential")

    @classmethod
    def from_mapping(cls, values: object, *, where: str = "config") -> ClaudeConfig:
        """Build from a JSON or TOML table; raises `ConfigError` naming the field and the value."""
        return build(cls, values, where)

    @classmethod
    def load(cls, path: Path) -> ClaudeConfig:
        """Read a `.toml` or `.json` file; raises `ConfigError` for its content and `OSError` for the file."""
        try:
            text = path.read_text(encoding="utf-8")
            values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path.name}: {error}") from error
        except RecursionError:
            raise ConfigError(f"{path.name}: is nested too deeply") from None
        return cls.from_mapping(values)

    def to_mapping(self) -> dict[str, Any]:
        """Return the table that `from_mapping` reads, with the API keys hidden."""
        keyless = replace(self, api_keys=None, faults=())
        table = {**asdict(keyless), "faults": [fault.to_mapping() for fault in self.faults]}
        if self.api_keys is not None:
            table["api_keys"] = list(self._hidden_keys())
        return table

    def keeping_keys_of(self, other: ClaudeConfig) -> ClaudeConfig:
        """Return this configuration with the keys of another where it has what hides them."""
        if self.api_keys is None:
            return self
        hidden = other._hidden_keys()
        return replace(self, api_keys=tuple(hidden.get(key, key) for key in self.api_keys))

    def _hidden_keys(self) -> dict[str, str]:
        """The API keys by what is shown instead of them."""
        return {f"hidden ({index})": key for index, key in enumerate(self.api_keys or ())}
