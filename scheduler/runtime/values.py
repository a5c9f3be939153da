"""What the scheduler reports about itself: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from scheduler.core.policy import Reason
from scheduler.core.quota import Cost, Usage


@dataclass(frozen=True, slots=True)
class Quote:
    """What a job would get if it were submitted now, without joining the line.

    `position`: jobs ahead in the line; `wait`: seconds, exact, by the tenant's own buckets; `expected`:
    seconds over everything that blocks; `binds`: what `expected` waits for.
    """

    position: int
    wait: float
    expected: float
    binds: Reason


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a job was served.

    `rung`: which rung of its ladder, counted from 0, None for none; `predicted`: the wait in seconds that was
    predicted when it was taken, and the reason for it. `model`, `max_tokens`, `deferred`: what differed from
    the usual; None and False for nothing. `waited`: seconds from submit to the start, `gate`: where it
    passed, `cost`: what was charged there, `usage`: what the model really used, None while that is not known.
    """

    rung: int | None
    predicted: float | None
    model: str | None
    max_tokens: int | None
    deferred: bool
    waited: float
    gate: str
    cost: Cost
    usage: Usage | None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Receipt:
        """The receipt that `to_json` wrote."""
        usage = value["usage"]
        amounts = {"cost": Cost(**value["cost"]), "usage": None if usage is None else Usage(**usage)}
        return cls(**{**value, **amounts})


@dataclass(frozen=True, slots=True)
class GateStatistics:
    """A snapshot of one gate.

    `running`: calls under way; `slots`: how many may be, None for any number; `waiting`: jobs in line for it.
    `paused`: seconds until anybody passes; `closed`: a spending limit was reached, and only a probe passes
    then. `limits`: permits per minute by name, as they are used now; `levels`: permits in each bucket.
    """

    running: int
    slots: int | None
    waiting: int
    paused: float
    closed: bool
    limits: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """How it stands with the store, as far as this process can tell.

    `down`: the seconds for which it has been down, None while it is there. The rest counts since the start:
    `outages`, calls that were `refused` because of one, and calls that this process `admitted` by itself;
    `unrecorded` of these are not in the store yet.
    """

    down: float | None
    outages: int = 0
    refused: int = 0
    admitted: int = 0
    unrecorded: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot, of everything or of one tenant.

    `waiting` and `running` are now, `tenants` the ones remembered now; the rest counts since the start:
    `granted`, `done`, `failed`, `cancelled` jobs and blocks, `refused` by reason, `retried` tries, `stalls`
    (wake-ups later than the catch-up cap); `gates` has a `GateStatistics` each. Of one tenant only `waiting`,
    `running`, `tenants` (0 or 1) and `levels` (permits in each bucket by name, below 0 when in debt) are
    filled in. `store` is None without one; while it is down all else is about what this process admits alone.
    """

    waiting: int
    running: int
    tenants: int
    granted: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    stalls: int = 0
    refused: Mapping[Reason, int] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    gates: Mapping[str, GateStatistics] = field(default_factory=dict)
    store: StoreStatistics | None = None
