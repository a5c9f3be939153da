"""What goes into the store and comes out of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from scheduler.core.learning import Knobs
from scheduler.core.owing import Owed
from scheduler.core.policy import Policy
from scheduler.core.quota import ONE, Cost, Quota, Usage
from scheduler.core.signals import Signal

WAITING, RUNNING, DONE, FAILED, CANCELLED = range(5)
"""States of a job, as the schema numbers them."""

FAR = 1 << 62
"""The lease, in nanoseconds, of a deferred job that nobody has taken yet."""

HOME_LOST = "home_lost"
"""The kind of failure of a caller whose process did not renew its lease."""

STATES = ("waiting", "running", "done", "failed", "cancelled")
"""Their names, by their numbers."""


class Holder(NamedTuple):
    """The try of a running job whose slot a continuation uses, and its how many-th `call` that is."""

    id: int
    tries: int
    call: int


class Unpriced(NamedTuple):
    """What it takes to estimate the cost of a call that names none.

    `counted`: the input tokens of its `prompt`, None while nothing is known that limits them. The prompt
    stays in this process.
    """

    prompt: Any
    knobs: Knobs
    counted: int | None = None


class Request(NamedTuple):
    """A job to be accepted. `prompt` is JSON, `quota` for a tenant that was never seen; times are ns.

    `home`: the process of a caller that runs its own work and has no prompt; it waits for `lease` nanoseconds
    unless that is renewed. `holder`: what it continues, if that is still running then. `gate`: the shared
    gate that it passes; None for the only one, or none. `most_deferred`: how many jobs a ladder may defer.
    `unpriced`: it names no cost, and is charged an estimate in place of `cost` if its tenant's tokens are
    limited, or its gate's.
    """

    tenant: str
    prompt: str | None
    quota: Quota
    policy: Policy
    cost: Cost
    head_start: int = 0
    session: str | None = None
    timeout: int | None = None
    key: str | None = None
    home: str | None = None
    lease: int = 0
    holder: Holder | None = None
    gate: str | None = None
    most_deferred: int = 0
    unpriced: Unpriced | None = None

    def __repr__(self) -> str:
        return f"<Request of {self.tenant!r}>"  # no prompt and no key

    def digest(self) -> bytes | None:
        """What tells another prompt under the same key."""
        if self.key is None:
            return None
        return sha256(f"{self.session!r} {self.prompt}".encode()).digest()


class Plan(NamedTuple):
    """How a job is served that has a ladder: as a `Receipt` says it, with `predicted` in nanoseconds."""

    rung: int
    predicted: int
    model: str | None
    max_tokens: int | None
    deferred: bool = False


class Accepted(NamedTuple):
    """A job that is committed. `new` False: it was before, under the same key.

    `cost`: what it will be charged, where that had to be found out.
    """

    id: int
    position: int
    arrival: int
    promised: int
    expected: int
    deadline: int = 0
    new: bool = True
    cost: Cost | None = None

    def known(self, tenant: str) -> Known:
        """What its caller knows of it."""
        return Known(self.id, tenant, WAITING, self.position, self.arrival, self.promised, self.expected)


Answer = Accepted | Exception
"""What is said to a request: the exception is why it was refused."""


class Known(NamedTuple):
    """How a job stands; how it is served too, and whether its line was late, where that was asked."""

    id: int
    tenant: str
    state: int
    position: int
    arrival: int
    promised: int
    expected: int
    slot: int | None = None
    gate: str = ""
    cost: Cost = ONE
    plan: Plan | None = None
    overtaken: bool = False


class Claim(NamedTuple):
    """A granted job, with all that its handler needs. Unless renewed it is taken away at `lease`.

    `memory`: what an earlier try of it left, if it is deferred.
    """

    id: int
    tenant: str
    prompt: str
    session: str | None
    cost: Cost
    attempt: int
    tries: int
    arrival: int
    promised: int
    slot: int
    deadline: int | None
    lease: int
    gate: str = ""
    plan: Plan | None = None
    memory: str | None = None


class Memory(NamedTuple):
    """What a try of a deferred job leaves for the tries after it."""

    id: int
    tries: int
    text: str


class Ended(NamedTuple):
    """How an attempt ended for good: its result as JSON, or the kind of its failure.

    `plain`: it is a job's, of no session, that used as many requests as it cost.
    """

    id: int
    tenant: str
    tries: int
    state: int
    result: str | None = None
    kind: str | None = None
    usage: Usage | None = None
    plain: bool = False


class Again(NamedTuple):
    """An attempt that shall be repeated, `after` nanoseconds from now.

    `refused`: the upstream did no work, so that nothing is charged again. `counted`: it was an attempt.
    `usage`: what it used, if that is known; NOTHING gives all of it back.
    """

    id: int
    tenant: str
    tries: int
    after: int = 0
    refused: bool = False
    counted: bool = True
    usage: Usage | None = None


class Outcome(NamedTuple):
    """What became of a job."""

    id: int
    tenant: str
    state: int
    result: str | None
    kind: str | None
    attempts: int
    seconds: float
    """Its timeout, if it had one."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What an upstream answered to the call of a grant, which passed that `gate` at that `slot`.

    `job`: its row, or 0 if it has none. `at`: when that was heard; None for now.
    """

    gate: str
    job: int
    tenant: str
    cost: Cost
    slot: int
    signal: Signal
    at: int | None = None


class Grown(NamedTuple):
    """A running call of that try that has produced so many output tokens: more than it was charged for."""

    id: int
    tenant: str
    tries: int
    output_tokens: int


class Unreached(ConnectionError):
    """No connection could be had, so nothing was asked of the store."""


class Uncounted(Exception):
    """A call's tokens are limited after all, and were not counted: whoever asks again must say how many."""


class Held(NamedTuple):
    """A caller that was admitted without the store and still runs. Its `key` tells it from all others.

    `gate`: the one that it passed, or none.
    """

    key: str
    cost: Cost
    arrival: int
    slot: int
    gate: str = ""


class Debt(NamedTuple):
    """What callers of a tenant used without the store. It is put there once, however often that is tried.

    `quota`: for a tenant that was never seen; `owed` has the costs of those that still run too. `gates`: what
    is owed to gates, for the grants of other tenants too.
    """

    key: str
    tenant: str
    quota: Quota
    owed: Owed
    held: Sequence[Held]
    gates: Mapping[str, Owed] = {}


class Withdrawn(Exception):
    """A caller's place in line is gone without a grant; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


@dataclass(eq=False, slots=True)
class Place:
    """A caller's place in line: `told` is done when it is granted, and then `slot` is there.

    `lost`: why it waits in vain, also where nobody heard of that.
    """

    accepted: Accepted
    tenant: str
    told: asyncio.Future[None]
    slot: int = 0
    lost: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Tell its caller that it waits in vain."""
        self.lost = error
        if not self.told.done():
            self.told.set_exception(error)
            self.told.exception()  # looked at, also where nobody waits any more
