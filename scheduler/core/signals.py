"""What a gate learns of its upstream, as values: the answer of one call, and what an operator says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from scheduler.core.quota import DIMENSIONS, Quota, duration, exact, instance


class Answer(StrEnum):
    """How an upstream took a call."""

    ACCEPTED = "accepted"
    """It works on it."""
    RATE_LIMITED = "rate_limited"
    """A limit was reached (429): nobody is let through until the time that it named."""
    RAMP = "ramp"
    """Use grew too fast (429 of its own kind): the same, and growth is slowed down."""
    SPEND_LIMIT = "spend_limit"
    """A spending limit was reached: no wait of minutes lifts it, so the gate is closed."""
    OVERLOADED = "overloaded"
    """It is short of capacity (529) or broken (5xx): fewer calls at once."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What one answer of an upstream says about its limits; a handler passes it to `Job.hear`.

    `retry_after`: seconds until the upstream wants to be asked again, if it said so. `limits`, `remaining`:
    by dimension (``"requests"``, ``"input_tokens"``, ``"output_tokens"``), permits per minute and permits
    left when the call began. Raises ValueError or TypeError for anything else.
    """

    answer: Answer
    retry_after: float | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    remaining: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        instance("answer", self.answer, Answer)
        if self.retry_after is not None and exact("retry_after", self.retry_after) < 0:
            raise ValueError(f"retry_after: must not be negative, got {self.retry_after!r}")
        for name in (*self.limits, *self.remaining):
            if name not in DIMENSIONS:
                raise ValueError(f"limits, remaining: a name must be one of {DIMENSIONS}, got {name!r}")


@dataclass(frozen=True, slots=True)
class Upstream:
    """The limit that tenants share in front of one upstream, and how far it follows what that says.

    `quota`: the limits until the upstream names its own. `ceiling`: limits that are never exceeded whatever
    it names; what it leaves out has no ceiling. With ``ceiling=quota`` the limits are only ever lowered.
    `spend_probe`: seconds after which one call may try whether a spending limit was lifted.
    """

    quota: Quota
    ceiling: Quota | None = field(default=None, kw_only=True)
    spend_probe: float = field(default=3600.0, kw_only=True)

    def __post_init__(self) -> None:
        instance("quota", self.quota, Quota)
        if self.ceiling is not None:
            instance("ceiling", self.ceiling, Quota)
            for name in DIMENSIONS:
                rate, bound = getattr(self.quota, name), getattr(self.ceiling, name)
                if rate is not None and bound is not None and rate.per_second > bound.per_second:
                    raise ValueError(f"ceiling: {name} must not be below the quota's {rate!r}, got {bound!r}")
        duration("spend_probe", self.spend_probe)

    @classmethod
    def of(cls, name: str, given: Quota | Upstream) -> Upstream:
        """Read what is given for a gate; a Quota alone has no ceiling. Raises TypeError, naming the gate."""
        if isinstance(given, Upstream):
            return given
        if isinstance(given, Quota):
            return cls(given)
        raise TypeError(f"gates[{name!r}]: must be a Quota or an Upstream, got {given!r}")


class What(StrEnum):
    """What happened at a gate, or to the store: the kinds of `News`."""

    PAUSED = "paused"
    """Nobody passes for `value` seconds."""
    CLOSED = "closed"
    """A spending limit: nobody passes but one probe every `value` seconds."""
    OPENED = "opened"
    """A probe was accepted, or an operator said so."""
    SLOTS = "slots"
    """`value` calls may run at once now."""
    LIMIT = "limit"
    """The limit of `dimension` is `value` permits per minute now."""
    TIGHTENED = "tightened"
    """The bucket of `dimension` was lowered to `value` permits: the upstream has no more."""

    RUNG = "rung"
    """A job of `tenant` took rung number `rung` of its ladder, at a predicted wait of `value` seconds."""
    WOULD = "would"
    """The same, of a policy that is `dark`: it was not taken."""

    STORE_DOWN = "store_down"
    """The store cannot be reached: what its `Outage` says counts from now on."""
    STORE_BACK = "store_back"
    """It can be reached again, after `value` seconds."""


@dataclass(frozen=True, slots=True)
class News:
    """One thing that happened at a gate, at `time` nanoseconds of the scheduler's clock.

    `gate` is empty where it happened to the store.
    """

    gate: str
    what: What
    time: int
    value: float = 0.0
    dimension: str | None = None
    tenant: str | None = None
    rung: int | None = None
