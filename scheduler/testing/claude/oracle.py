"""The oracle: what arrived and what became of it, attempt by attempt, without texts or keys."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from scheduler.testing.claude.config import SECRET_HEADERS, ClaudeConfig
from scheduler.testing.claude.http import Exchange, Request

_COUNT = re.compile("[0-9]{1,9}")

Decision = Literal["pending", "admitted", "refused", "fault", "overloaded", "invalid", "other"]


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One request as the upstream saw it. It is filled in while the request runs; `end_ns` is set last.

    Times are integer nanoseconds of `time.monotonic_ns` on this machine: `arrival_ns` when the head was read,
    `ttft_ns` from there to the first byte of an answer, `end_ns` when it was over, `disconnect_ns` when the
    client left before that. `credential` is a fingerprint (see `credential_id`), `credential_header` where it
    came from.

    `decision` says how the request was decided, and `reason` the limit (`requests`, `input-tokens`,
    `output-tokens`, `tokens`), the fault's kind or the error's type. `fault` is the fault drawn for it, even
    if a limit refused it before. `status` is what was answered, `None` for nothing. `retry_after_s` is the
    exact wait of a refused request, in real seconds. `cancelled` means that the work ended before its time.
    """

    number: int
    request_id: str
    method: str
    path: str
    arrival_ns: int
    credential: str | None = None
    credential_header: str | None = None
    retry_count: int = 0
    tenant: str | None = None
    job: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    bytes_in: int = 0
    body_sha256: str = ""
    body: bytes | None = None
    model: str | None = None
    model_class: str | None = None
    stream: bool = False
    decision: Decision = "pending"
    reason: str | None = None
    fault: str | None = None
    status: int | None = None
    retry_after_s: float | None = None
    ttft_ns: int | None = None
    end_ns: int | None = None
    disconnect_ns: int | None = None
    cancelled: bool = False
    bytes_out: int = 0
    input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0
    output_tokens_after_disconnect: int = 0

    def to_mapping(self) -> dict[str, Any]:
        """Return the record as JSON; a kept body stays out."""
        return {name: value for name, value in asdict(self).items() if name != "body"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaudeStatistics:
    """Sums over all attempts since the start or the last reset; `in_flight` counts admitted requests.

    `refused` counts 429s of the simulated limits by limit, `faults` injected faults by kind (of attempts, and
    of single requests of a batch), `statuses` answers by status. Token sums are of admitted requests.
    `retries` counts attempts that called themselves one. `disconnected` counts clients that left before their
    answer was complete, `output_tokens_after_disconnect` what was still produced for them.
    """

    requests: int
    admitted: int
    refused: Mapping[str, int]
    faults: Mapping[str, int]
    statuses: Mapping[int, int]
    overloaded: int
    in_flight: int
    in_flight_peak: int
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    retries: int
    disconnected: int
    cancelled: int
    output_tokens_after_disconnect: int

    @property
    def rate_limited(self) -> int:
        """How many 429s were sent, for whatever reason."""
        return self.statuses.get(429, 0)


class Oracle:
    """The log of attempts, bounded, oldest out first, and the sums over all of them."""

    def __init__(self, config: ClaudeConfig) -> None:
        """Start empty."""
        self._config = config
        self._attempts: deque[Attempt] = deque(maxlen=config.attempts_max)
        self._sums: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self.in_flight = 0
        self._in_flight_peak = 0

    @property
    def attempts(self) -> Iterable[Attempt]:
        """The attempts in order of arrival."""
        return self._attempts

    def open(self, number: int, request_id: str, request: Request) -> Attempt:
        """Record an arrival."""
        header, key = credential_of(request.headers)
        retry_count = request.headers.get("x-stainless-retry-count", "0")
        config = self._config
        attempt = Attempt(
            number=number,
            request_id=request_id,
            method=request.method,
            path=request.path,
            arrival_ns=request.arrival_ns,
            credential=credential_id(key) if key else None,
            credential_header=header,
            retry_count=int(retry_count) if _COUNT.fullmatch(retry_count) else 0,
            tenant=_first(request.headers, config.tenant_headers),
            job=_first(request.headers, config.job_headers),
            headers=_recorded(request.headers, config.record_headers),
            bytes_in=len(request.body),
            body_sha256=hashlib.sha256(request.body).hexdigest() if request.body else "",
            body=request.body if config.keep_bodies else None,
        )
        self._attempts.append(attempt)
        self._sums["requests"] += 1
        self._sums["retries"] += attempt.retry_count > 0
        return attempt

    def admit(self, attempt: Attempt) -> None:
        """Record that a request is running."""
        attempt.decision = "admitted"
        self._sums["admitted"] += 1
        self.in_flight += 1
        self._in_flight_peak = max(self._in_flight_peak, self.in_flight)

    def release(self) -> None:
        """Record that an admitted request runs no more."""
        self.in_flight -= 1

    def count_fault(self, kind: str) -> None:
        """Record that a fault has hit an attempt, or a single request of a batch."""
        self._faults[kind] += 1

    def close(self, attempt: Attempt, exchange: Exchange, now_ns: int) -> None:
        """Record the end of an attempt and add it to the sums."""
        attempt.end_ns = now_ns
        attempt.bytes_out = exchange.bytes_out
        attempt.disconnect_ns = exchange.disconnect_ns
        attempt.cancelled = attempt.cancelled or not exchange.finished
        if not exchange.head_sent:
            attempt.status = None
        else:
            self._statuses[attempt.status or 0] += 1
        if attempt.decision == "refused":
            self._refused[attempt.reason or ""] += 1
        if attempt.fault is not None:
            self.count_fault(attempt.fault)
        self._sums.update(
            overloaded=attempt.status == 529,
            input_tokens=attempt.input_tokens,
            cache_creation_input_tokens=attempt.cache_creation_input_tokens,
            cache_read_input_tokens=attempt.cache_read_input_tokens,
            output_tokens=attempt.output_tokens,
            output_tokens_after_disconnect=attempt.output_tokens_after_disconnect,
            disconnected=attempt.disconnect_ns is not None,
            cancelled=attempt.cancelled,
        )

    def statistics(self) -> ClaudeStatistics:
        """Return the sums so far."""
        sums = self._sums
        return ClaudeStatistics(
            requests=sums["requests"],
            admitted=sums["admitted"],
            refused=dict(self._refused),
            faults=dict(self._faults),
            statuses=dict(self._statuses),
            overloaded=sums["overloaded"],
            in_flight=self.in_flight,
            in_flight_peak=self._in_flight_peak,
            input_tokens=sums["input_tokens"],
            cache_creation_input_tokens=sums["cache_creation_input_tokens"],
            cache_read_input_tokens=sums["cache_read_input_tokens"],
            output_tokens=sums["output_tokens"],
            retries=sums["retries"],
            disconnected=sums["disconnected"],
            cancelled=sums["cancelled"],
            output_tokens_after_disconnect=sums["output_tokens_after_disconnect"],
        )


def credential_of(headers: Mapping[str, str]) -> tuple[str | None, str]:
    """Return which header carries the key, and the key; `x-api-key` wins over `authorization`."""
    if key := headers.get("x-api-key"):
        return "x-api-key", key
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return "authorization", key.strip()
    return None, ""


def credential_id(key: str) -> str:
    """Return the fingerprint by which the oracle names an API key."""
    return "key_" + hashlib.sha256(key.encode()).hexdigest()[:12]


def _first(headers: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((headers[name] for name in names if name in headers), None)


def _recorded(headers: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """Return the headers to keep; `*` is all that are not secret."""
    if "*" in names:
        return {name: value for name, value in headers.items() if name not in SECRET_HEADERS}
    return {name: headers[name] for name in names if name in headers}
