"""A job as the engine sees it: what it costs, where it stands, when it was granted."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from scheduler.core.policy import Cause, Policy, Reason, Refusal
from scheduler.core.quota import ONE, Cost

if TYPE_CHECKING:
    from scheduler.core.gate import Gate
    from scheduler.core.tenant import Tenant

SEQUENCE_BITS = 40
"""Bits of a key that hold the sequence number: a trillion jobs per engine."""

RUN_BITS = 12
"""Lowest bits of a key: 0 for a job, the number of the call for a continuation of its run."""


class State(Enum):
    """Where a job is between offer and settle."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    REFUSED = "refused"
    EXPIRED = "expired"
    ENDED = "ended"


NEW, WAITING, RUNNING, REFUSED, EXPIRED, ENDED = State
"""The states by name: looking a member up in its class costs more than the whole comparison."""


class Alarm:
    """When a waiting job is to be looked at, apart from its own events."""

    __slots__ = ("entry", "placed")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.placed: tuple[Any, ...] | None = None


class Entry:
    """One job in the engine.

    `owner` is the tenant that pays, `shared` the gate that it passes, `expires` its deadline in nanoseconds.
    `key` orders the line: arrival less head start in its high bits, then the sequence, then the call of a
    run, so that one integer compares like the three. `slot` is the grant's slot time, or when it went back to
    wait after that, `promised` the start that was promised, both in nanoseconds. `holder` is the running job
    whose slot a continuation reuses.
    `paid` says that the tenant's permits were already charged for a try that the upstream refused, `period`
    in which busy period of the gate the grant made a debt (0: in none). `reserved` is its cost at the grant,
    once more output than that was charged. `plain` says that it costs one request of one permit, not paid
    before, and has neither session, deadline, head start, ladder nor holder.

    What its ladder did: `rung` counts the rungs up to the last that was taken, at which `predicted` was the
    wait in nanoseconds; `model`, `max_tokens` and `deferred` are what came of them, `alarm` is when it will
    be looked at again.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "arrival",
        "cost",
        "key",
        "owner",
        "plain",
        "policy",
        "promised",
        "refusal",
        "sequence",
        "shared",
        "slot",
        "state",
    )

    owner: Tenant
    shared: Gate
    arrival: int
    key: int
    promised: int
    refusal: Refusal | None
    sequence: int

    # What few jobs have is a default of the class until it is set: most entries never need the room.
    expires: int | None = None
    head_start: int = 0
    session: str | None = None
    holder: Entry | None = None
    paid: bool = False
    reserved: Cost | None = None
    outside: bool = False
    placed: tuple[Any, ...] | None = None
    delayed: frozenset[Cause] = frozenset()
    calls: int = 0
    period: int = 0
    gate: str = ""
    rung: int = 0
    predicted: int = 0
    model: str | None = None
    max_tokens: int | None = None
    deferred: bool = False
    alarm: Alarm | None = None
    watched: bool = True
    """Whether anybody can ask why it was late."""

    def __init__(self, policy: Policy, cost: Cost = ONE, **rare: Any) -> None:
        """`rare`: expires and head_start (nanoseconds), session, holder."""
        self.policy = policy
        self.cost = cost
        self.plain = cost is ONE and not rare and not policy.ladder
        self.state = NEW
        self.refusal = None
        self.slot = self.key = 0
        for name, value in rare.items():
            setattr(self, name, value)

    def place_in_order(self, now: int, sequence: int) -> None:
        """Fix arrival and key: a continuation takes its run's key, anybody else a new one."""
        self.arrival, self.sequence = now, sequence
        if self.holder is None:
            self.key = 0
            self.fix_key()
        else:
            self.holder.calls += 1
            self.key = self.holder.fix_key() + min(self.holder.calls, (1 << RUN_BITS) - 1)

    def fix_key(self) -> int:
        """The key, worked out when it is first needed: a job that starts at once seldom needs one."""
        if not self.key:
            self.key = ((self.arrival - self.head_start << SEQUENCE_BITS) + self.sequence) << RUN_BITS
        return self.key

    def __lt__(self, other: Entry) -> bool:
        return self.key < other.key

    @property
    def reason(self) -> Reason | None:
        """Why it was refused, if it was."""
        return None if self.refusal is None else self.refusal.reason
