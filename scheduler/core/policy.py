"""How long and how deep a tenant may wait, and what happens instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from scheduler.core.quota import LONGEST, instance, nanoseconds, whole

LONGEST_NAME = 512
"""Characters in the name of a model or a gate."""


class Reason(StrEnum):
    """Why a job was refused. The value is the metric label and `ErrRateLimited.reason`."""

    # An enumeration hashes its members' names; this one is found in a dict by its value too, and faster.
    __hash__ = str.__hash__

    STRICT = "strict"
    """No waiting allowed, and the tenant's own buckets have no permit."""
    GATE = "gate"
    """No waiting allowed, and the shared gate has no permit, or others wait for it."""
    PAUSE = "pause"
    """No waiting allowed, and the gate is paused."""
    SLOT = "slot"
    """No waiting allowed, and as many jobs run as may: of all, of the gate, the tenant or the session."""
    MAX_WAIT = "max_wait"
    """The expected wait is longer than the policy allows."""
    QUEUE_FULL = "queue_full"
    """The line is as long as the policy allows."""
    DEADLINE = "deadline"
    """The expected start is not before the job's deadline."""
    MAX_WAITING = "max_waiting"
    """The scheduler holds as many waiting jobs as it may, over all tenants."""
    SPEND_LIMIT = "spend_limit"
    """The upstream's spending limit was reached: the gate is closed to all."""
    STORE_DOWN = "store_down"
    """The store cannot be reached, and what it would decide is not decided without it."""
    NEVER = "never"
    """The cost is above a burst: waiting would not help. Callers see `QuotaExceeded`."""


class Cause(StrEnum):
    """Why a job starts later than it was promised: the members of `ticket.delayed_by`."""

    __hash__ = str.__hash__

    LIMIT_LOWERED = "limit_lowered"
    PAUSE = "pause"
    GATE = "gate"
    SLOT = "slot"
    SESSION = "session"
    CONTINUATION = "continuation"
    PRIORITY = "priority"
    RETRY = "retry"
    USAGE_ABOVE_ESTIMATE = "usage_above_estimate"
    STALL = "stall"
    OVERLOAD_ORDER = "overload_order"


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of a ladder: from a predicted wait of `after` seconds on, a job may be served like this.

    `model`: by another model. `gate`: through another gate; for a `model` without one, the gate of its name.
    `max_tokens`: with an answer of at most so many tokens. `defer`: ``"batch"`` for whenever there is room,
    by the scheduler's `deferred` handler. A rung adds to those before it, and is taken only if it makes the
    predicted start earlier or the cost smaller. Raises ValueError or TypeError for anything else.
    """

    after: float
    model: str | None = field(default=None, kw_only=True)
    gate: str | None = field(default=None, kw_only=True)
    max_tokens: int | None = field(default=None, kw_only=True)
    defer: str | None = field(default=None, kw_only=True)
    after_ns: int = field(init=False, repr=False, compare=False)
    """`after` in nanoseconds, worked out once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "after_ns", nanoseconds("after", self.after))
        for name in ("model", "gate"):
            value = getattr(self, name)
            if value is not None and not instance(name, value, str):
                raise ValueError(f"{name}: must not be empty, got {value!r}")
            if value is not None and not (value.isprintable() and len(value) <= LONGEST_NAME):
                raise ValueError(
                    f"{name}: must be printable, at most {LONGEST_NAME} characters, got {value!r}"
                )
        if self.max_tokens is not None and whole("max_tokens", self.max_tokens, 1) >= 1 << 31:
            raise ValueError(f"max_tokens: must be below 2^31, got {self.max_tokens!r}")
        if self.defer not in (None, "batch"):
            raise ValueError(f"defer: must be 'batch' or None, got {self.defer!r}")
        if (self.model, self.gate, self.max_tokens, self.defer) == (None, None, None, None):
            raise ValueError(f"rung: must change something, got only after={self.after!r}")


@dataclass(frozen=True, slots=True)
class Policy:
    """The bounds of waiting, and what happens instead.

    `max_wait`: the longest expected wait in seconds that is accepted (equal is accepted), judged at submit
    and whenever it worsens; None for no bound. `max_queue`: the most jobs in one line. `ladder`: the rungs by
    which service degrades before it is refused, by rising `after`. `dark`: decide about rungs, and tell the
    listener, but take none.
    """

    max_wait: float | None = 600.0
    max_queue: int = 1000
    ladder: Sequence[Rung] = field(default=(), kw_only=True)
    dark: bool = field(default=False, kw_only=True)
    max_wait_ns: int | None = field(init=False, repr=False, compare=False)
    """`max_wait` in nanoseconds, worked out once."""

    def __post_init__(self) -> None:
        bound = None if self.max_wait is None else nanoseconds("max_wait", self.max_wait)
        object.__setattr__(self, "max_wait_ns", bound)
        whole("max_queue", self.max_queue, 0)
        object.__setattr__(self, "ladder", tuple(self.ladder))
        for rung in self.ladder:
            instance("ladder: a rung", rung, Rung)
        for before, rung in pairwise(self.ladder):
            if rung.after_ns <= before.after_ns:
                raise ValueError(f"ladder: after must rise, got {before.after!r} before {rung.after!r}")

    @classmethod
    def strict(cls) -> Policy:
        """Refuse whatever cannot start at once."""
        return cls(max_wait=0.0)


@dataclass(frozen=True, slots=True)
class Overload:
    """What happens in a line whose oldest job has waited for more than `target` seconds, until it has not.

    `order`: ``"deadline"``, the one whose deadline comes first goes first, or ``"newest"``, the one that came
    last, since it is the likeliest to be wanted still. That follows from who waits and from the time alone;
    later messages of runs go before all of them, and who is overtaken until its `max_wait` has passed is
    refused. Where this is declared, a job that has to wait and could not end before its deadline, by the mean
    time that jobs take, is refused instead of begun. Raises ValueError or TypeError for anything else.
    """

    target: float
    order: str = "deadline"
    target_ns: int = field(init=False, repr=False, compare=False)
    """`target` in nanoseconds, worked out once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_ns", nanoseconds("target", self.target))
        if self.order not in ("deadline", "newest"):
            raise ValueError(f"order: must be 'deadline' or 'newest', got {self.order!r}")


class Outlook(NamedTuple):
    """What a job can look forward to: the one formula behind promise, quote and refusal."""

    position: int
    """Jobs ahead of it in its line."""
    promised: int
    """The nanosecond at which its tenant's own buckets would start it."""
    expected: int
    """The nanosecond at which it is expected to start, over everything that blocks."""
    binds: Reason
    """What `expected` is waiting for: STRICT (own buckets), GATE, PAUSE or SLOT."""


@dataclass(slots=True)
class Refusal:
    """A decision not to let a job wait."""

    reason: Reason
    retry_after: int
    """Nanoseconds, above 0; 0 only with NEVER."""
    limit: tuple[str, int, int] | None = None
    """With NEVER: the limit's name, the cost and the burst, in permits."""


def decide(
    outlook: Outlook, arrival: int, max_wait: int | None, full: bool, deadline: int | None
) -> Reason | None:
    """Judge a job that cannot start at once: None to let it wait, else why not. `full`: the line is.

    `max_wait` None is no bound but the one of all times.
    """
    if deadline is not None and deadline <= arrival:
        return Reason.DEADLINE
    if max_wait == 0:
        return outlook.binds
    if full:
        return Reason.QUEUE_FULL
    if deadline is not None and outlook.expected >= deadline:
        return Reason.DEADLINE
    if outlook.expected - arrival > (LONGEST if max_wait is None else max_wait):
        return Reason.MAX_WAIT
    return None
