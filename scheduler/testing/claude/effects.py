"""Faults that act before an answer or instead of it. Those that damage one under way are in `damage`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scheduler.testing.claude.errors import ApiError, Headers
from scheduler.testing.claude.frames import Delivery, End
from scheduler.testing.claude.http import Exchange
from scheduler.testing.claude.loading import require, require_header
from scheduler.testing.claude.timing import SimulatedTime, http_date

DURATION_S_MAX = 86_400
# Some thirty years: dates are written with four digits of a year.
AHEAD_S_MAX = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Effect:
    """Base of all faults: by itself it changes nothing.

    `kind` is its name in configuration files and in the oracle; `drop` ends the connection instead of an
    answer.
    """

    kind: ClassVar[str] = "none"
    drop: ClassVar[End | None] = None

    async def delay(self, exchange: Exchange, time: SimulatedTime) -> None:
        """Wait before the head."""

    def refusal(self, time: SimulatedTime) -> ApiError | None:
        """Return the error to answer instead."""

    def rewrite(self, delivery: Delivery) -> Delivery:
        """Return the damaged answer."""
        return delivery


def require_duration(field: str, seconds: float) -> None:
    """Raise `ConfigError` unless a duration is from zero to a day."""
    require(0 <= seconds <= DURATION_S_MAX, field, seconds, f"must be from 0 to {DURATION_S_MAX}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorStatus(Effect):
    """An error status with its usual envelope.

    `retry_after` is sent as it is given (real seconds, or any text); `retry_after_date_s` sends an HTTP date
    so many real seconds ahead instead. `should_retry` adds `x-should-retry`.
    """

    kind: ClassVar[str] = "status"
    status: int = 500
    retry_after: float | str | None = None
    retry_after_ms: float | None = None
    retry_after_date_s: float | None = None
    should_retry: bool | None = None
    error_code: str | None = None
    message: str = "Refused by the simulation"

    def __post_init__(self) -> None:
        """Refuse what is not an error status, and what no header can say."""
        require(400 <= self.status <= 599, "fault.status", self.status, "must be from 400 to 599")
        require_header("fault.retry_after", self.retry_after)
        ahead_s = self.retry_after_date_s
        require(
            ahead_s is None or abs(ahead_s) <= AHEAD_S_MAX,
            "fault.retry_after_date_s",
            ahead_s,
            f"must be from -{AHEAD_S_MAX} to {AHEAD_S_MAX}",
        )

    def refusal(self, time: SimulatedTime) -> ApiError:
        """Return the error."""
        headers = self._headers(time)
        return ApiError(
            self.status, self.message, reason=self.kind, error_code=self.error_code, headers=headers
        )

    def _headers(self, time: SimulatedTime) -> Headers:
        headers = []
        if self.retry_after_date_s is not None:
            headers.append(("retry-after", http_date(time.wall_s() + self.retry_after_date_s)))
        elif self.retry_after is not None:
            headers.append(("retry-after", _number_text(self.retry_after)))
        if self.retry_after_ms is not None:
            headers.append(("retry-after-ms", _number_text(self.retry_after_ms)))
        if self.should_retry is not None:
            headers.append(("x-should-retry", str(self.should_retry).lower()))
        return headers


def _number_text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.12g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimited(ErrorStatus):
    """429, as if a limit had been reached; `retry_after=None` leaves the header out."""

    kind: ClassVar[str] = "rate_limited"
    status: int = 429
    retry_after: float | str | None = 1
    message: str = "This request would exceed your organization's rate limit."


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp(ErrorStatus):
    """429 because usage grew too fast."""

    kind: ClassVar[str] = "ramp"
    status: int = 429
    retry_after: float | str | None = 1
    error_code: str | None = "ramp_limit_exceeded"
    message: str = "Your usage is growing too fast. The limit rises at the next minute boundary."


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendCap(ErrorStatus):
    """429 without `retry-after`: the spend cap of a month, which no wait of minutes lifts."""

    kind: ClassVar[str] = "spend_cap"
    status: int = 429
    error_code: str | None = "enforced_spend_limit_reached"
    message: str = "You have reached your API usage limits. You will regain access next month."


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSpendLimit(ErrorStatus):
    """400: a spend limit that the customer has set."""

    kind: ClassVar[str] = "own_spend_limit"
    status: int = 400
    message: str = "You have reached your specified workspace API usage limits."


@dataclass(frozen=True, slots=True, kw_only=True)
class Overloaded(ErrorStatus):
    """529: everybody is affected, it is not a quota."""

    kind: ClassVar[str] = "overloaded"
    status: int = 529
    message: str = "Overloaded"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShouldRetry(ErrorStatus):
    """A 429 that tells the client not to retry; set `status=400, should_retry=True` for the opposite."""

    kind: ClassVar[str] = "should_retry"
    status: int = 429
    should_retry: bool | None = False


@dataclass(frozen=True, slots=True)
class ResetBeforeHead(Effect):
    """The connection is reset (RST) instead of an answer."""

    kind: ClassVar[str] = "reset_before_head"
    drop: ClassVar[End | None] = "reset"


@dataclass(frozen=True, slots=True)
class CloseBeforeHead(Effect):
    """The connection is closed (FIN) instead of an answer."""

    kind: ClassVar[str] = "close_before_head"
    drop: ClassVar[End | None] = "close"


@dataclass(frozen=True, slots=True)
class SlowHeaders(Effect):
    """The head comes `seconds` late, with a `102 Processing` in every `interim_every_s` if that is given.

    A `status` from 400 on is answered then instead of the message.
    """

    kind: ClassVar[str] = "slow_headers"
    seconds: float
    interim_every_s: float | None = None
    status: int = 200
    retry_after: float | str | None = None

    def __post_init__(self) -> None:
        """Refuse durations that are negative or longer than a day, and statuses that are not answered."""
        require_duration("fault.seconds", self.seconds)
        require(
            self.status == 200 or 400 <= self.status <= 599,
            "fault.status",
            self.status,
            "must be 200 or from 400 to 599",
        )
        require_header("fault.retry_after", self.retry_after)
        require(
            self.interim_every_s is None or self.interim_every_s > 0,
            "fault.interim_every_s",
            self.interim_every_s,
            "must be above 0",
        )

    async def delay(self, exchange: Exchange, time: SimulatedTime) -> None:
        """Wait, with interim responses if asked."""
        step_s = self.interim_every_s or self.seconds
        left_s = self.seconds
        while left_s > 0:
            await time.sleep(min(step_s, left_s))
            left_s -= step_s
            if self.interim_every_s is not None:
                exchange.interim(102)

    def refusal(self, time: SimulatedTime) -> ApiError | None:
        """Return the error that follows the wait, if a `status` was given."""
        if self.status < 400:
            return None
        late = ErrorStatus(status=self.status, retry_after=self.retry_after)
        return late.refusal(time)


EFFECTS_BEFORE: tuple[type[Effect], ...] = (
    ErrorStatus, RateLimited, Ramp, SpendCap, OwnSpendLimit, Overloaded, ShouldRetry, ResetBeforeHead,
    CloseBeforeHead, SlowHeaders,
)  # fmt: skip
