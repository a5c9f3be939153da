"""A script of operations, played on an engine: what the property tests draw, and what they look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import strategies as st

from scheduler.core.engine import Engine
from scheduler.core.entry import Entry, State
from scheduler.core.policy import Policy, Refusal, Rung
from scheduler.core.quota import DIMENSIONS, NS, ONE, Cost, Quota, Rate, Usage
from scheduler.core.signals import Answer, Signal, Upstream

MS = 1_000_000
START = 1_000 * NS
"""Where the clock of most tests stands at first."""

PATIENT = Policy(max_wait=None, max_queue=10_000)
"""Waits as long as it takes."""


class Op(NamedTuple):
    """One operation, `gap` nanoseconds after the last. `pick` chooses a job among those that exist."""

    kind: str
    gap: int = 0
    tenant: str = "a"
    gate: str = ""
    pick: int = 0
    cost: Cost = Cost()
    policy: Policy = PATIENT
    head_start: int = 0
    session: str | None = None
    timeout: int | None = None
    usage: Usage | None = None
    delay: int = 0
    refused: bool = False
    quota: Quota = Quota()
    signal: Signal = Signal(Answer.ACCEPTED)


class Told(NamedTuple):
    """What the engine said of a job: its number, what became of it, and when it starts or may come back."""

    job: int
    what: str
    time: int


@dataclass
class Play:
    """An engine, the jobs that were offered to it, and all that it told, in order.

    `by_number`: operations pick their job among all there ever were, and not by what it seems to be before
    the engine has advanced; so a script means the same whether wake-ups are late or not.
    """

    engine: Engine
    now: int = START
    jobs: list[Entry] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    after: Callable[[Play], None] | None = None
    by_number: bool = False

    def run(self, ops: Sequence[Op]) -> Play:
        """Play a script."""
        for op in ops:
            self.do(op)
        return self

    def do(self, op: Op) -> None:
        """Play one operation."""
        self.now += op.gap
        getattr(self, op.kind)(op)
        self.listen()
        if self.after is not None:
            self.after(self)

    def listen(self) -> None:
        """Note what moved."""
        moved, self.engine.moved = self.engine.moved, []
        for entry in moved:
            self.tell(entry)

    def tell(self, entry: Entry) -> None:
        """Note what became of one job."""
        time = entry.slot if entry.refusal is None else entry.refusal.retry_after
        what = entry.state.value if entry.reason is None else str(entry.reason)
        if entry.state is State.ENDED:
            what = "running"  # it was granted and withdrawn in one operation
        self.told.append(Told(self.jobs.index(entry), what, time))

    # --- operations ---------------------------------------------------------------------------------

    def add(self, now: int, entry: Entry, tenant: str, gate: str) -> Refusal | None:
        """Offer a job and note the answer, if it is one."""
        self.jobs.append(entry)
        refusal = self.engine.offer(now, tenant, gate, entry)
        self.listen()
        if entry.state is not State.WAITING and entry not in [self.jobs[told.job] for told in self.told[-9:]]:
            self.tell(entry)
        return refusal

    def offer(self, op: Op) -> None:
        """Offer a new job."""
        deadline = None if op.timeout is None else self.now + op.timeout
        rare = {"expires": deadline, "head_start": op.head_start, "session": op.session}
        # The engine tells the plain job by its very cost, so that its short ways are tested like any other.
        cost = ONE if op.cost == ONE else op.cost
        entry = Entry(op.policy, cost, **{name: value for name, value in rare.items() if value})
        self.add(self.now, entry, op.tenant, op.gate)

    def pick(self, op: Op, *states: State) -> Entry | None:
        """The job that an operation is about."""
        if self.by_number and self.jobs:
            return self.jobs[op.pick % len(self.jobs)]
        among = [entry for entry in self.jobs if entry.state in states]
        return among[op.pick % len(among)] if among else None

    def chain(self, op: Op) -> None:
        """Offer a continuation of a running job."""
        self.engine.advance(self.now)
        self.listen()
        holder = self.pick(op, State.RUNNING)
        if holder is not None and holder.state is State.RUNNING and holder.holder is None:
            entry = Entry(PATIENT, op.cost, holder=holder)
            self.add(self.now, entry, holder.owner.name, holder.shared.name)

    def settle(self, op: Op) -> None:
        """End a running job, and its continuations before it."""
        entry = self.pick(op, State.RUNNING)
        if entry is not None:
            self.end_calls_of(entry)
            self.engine.settle(self.now, entry, op.usage)
        else:
            self.engine.advance(self.now)

    def end_calls_of(self, holder: Entry) -> None:
        """Withdraw or settle the continuations of a run that ends: a slot must not outlive its job."""
        for entry in self.jobs:
            if entry.holder is holder and entry.state is State.WAITING:
                self.engine.withdraw(self.now, entry)
            elif entry.holder is holder and entry.state is State.RUNNING:
                self.engine.settle(self.now, entry)
            self.listen()

    def withdraw(self, op: Op) -> None:
        """Withdraw a job that waits or runs."""
        entry = self.pick(op, State.WAITING, State.RUNNING)
        if entry is not None:
            self.end_calls_of(entry)
            self.engine.withdraw(self.now, entry)
        else:
            self.engine.advance(self.now)

    def retry(self, op: Op) -> None:
        """Put a running job back."""
        self.engine.advance(self.now)
        self.listen()
        entry = self.pick(op, State.RUNNING)
        if entry is not None and entry.state is State.RUNNING:
            self.end_calls_of(entry)
            if self.engine.retry(self.now, entry, self.now + op.delay, op.refused) is not None:
                self.listen()
                self.tell(entry)

    def advance(self, op: Op) -> None:
        """Let time pass."""
        self.engine.advance(self.now)

    def pause(self, op: Op) -> None:
        """Pause a gate."""
        self.engine.pause(self.now, op.gate, self.now + op.delay)

    def hear(self, op: Op) -> None:
        """An upstream's answer to the call of a running job."""
        self.engine.advance(self.now)
        self.listen()
        entry = self.pick(op, State.RUNNING)
        if entry is not None and entry.state is State.RUNNING:
            self.engine.hear(self.now, entry, op.signal)

    def resume(self, op: Op) -> None:
        """An operator opens a gate."""
        self.engine.resume(self.now, op.gate)

    def set_quota(self, op: Op) -> None:
        """Change a tenant's quota."""
        self.engine.set_quota(self.now, op.tenant, op.quota)

    # --- looking ------------------------------------------------------------------------------------

    def drain(self, limit: int = 10_000) -> Play:
        """End every run as soon as it starts, and follow the wake-ups until nobody waits or runs."""
        for _ in range(limit):
            for entry in self.jobs:
                if entry.state is State.RUNNING and entry.holder is not None:
                    self.engine.settle(self.now, entry)
                    self.listen()
            for entry in self.jobs:
                if entry.state is State.RUNNING and not self.calls_waiting(entry):
                    self.engine.settle(self.now, entry)
                    self.listen()
            self.listen()
            if any(e.state is State.RUNNING and not self.calls_waiting(e) for e in self.jobs):
                continue
            if not self.engine.waiting:
                return self
            wake = self.engine.wake
            assert wake is not None, "jobs wait and nothing will ever happen"
            assert wake > self.now, "the next wake-up is not in the future"
            self.now = wake
            self.engine.advance(self.now)
            self.listen()
            if self.after is not None:
                self.after(self)
        raise AssertionError("jobs still wait after a great many wake-ups")

    def calls_waiting(self, holder: Entry) -> bool:
        """Whether a continuation of the run waits."""
        return any(e.holder is holder and e.state is State.WAITING for e in self.jobs)

    @property
    def grants(self) -> list[tuple[int, int]]:
        """(job, slot) of every grant, in the order in which they were told."""
        return [(told.job, told.time) for told in self.told if told.what == "running"]

    def starts(self) -> dict[int, int]:
        """The slot of the last grant of each job."""
        return dict(self.grants)


def engine(
    quota: Quota | Mapping[str, Quota] = Quota(),  # noqa: B008 - a frozen value
    gates: Mapping[str, Quota | Upstream] | None = None,
    max_running: int = 1_000_000,
    now: int = START,
    kind: type[Engine] = Engine,
) -> Engine:
    """An engine with one quota for all tenants, or one each, and one gate without limits by default."""
    quota_of: Callable[[str], Quota] = quota.__getitem__ if isinstance(quota, Mapping) else lambda _: quota
    made = kind(now, quota_of, gates or {"": Quota()}, max_running)
    made.max_deferred = 1000
    return made


# --- what hypothesis draws ------------------------------------------------------------------------------

RATES = [
    Rate(2, burst=5),
    Rate(3, burst=1),
    Rate(7, burst=2),
    Rate(1, burst=4),
    Rate(50, burst=3),
    Rate(5, per=3, burst=2),
]
TOKENS = [None, Rate(100, burst=300), Rate(7, burst=50), Rate(1000, per=60, burst=100)]

gaps = st.one_of(
    st.just(0), st.integers(0, 40).map(lambda n: n * 100 * MS), st.integers(0, 600 * MS), st.integers(0, 3)
)
rates = st.sampled_from(RATES)
token_rates = st.sampled_from(TOKENS)
costs = st.builds(Cost, st.just(1), st.integers(0, 50), st.integers(0, 50))
small_costs = st.one_of(
    st.just(Cost()), st.builds(Cost, st.integers(1, 2), st.integers(0, 20), st.integers(0, 9))
)
usages = st.one_of(st.none(), st.builds(Usage, st.integers(0, 2), st.integers(0, 60), st.integers(0, 60)))
quotas = st.builds(
    Quota,
    st.one_of(st.none(), rates),
    input_tokens=token_rates,
    output_tokens=token_rates,
    concurrency=st.sampled_from([None, None, 1, 2, 5]),
    weight=st.sampled_from([1, 1, 2, 0.3, 10]),
)
LADDER = Policy(
    max_wait=30.0,
    ladder=(Rung(0.5, gate="y"), Rung(1, max_tokens=3), Rung(1.5, gate="x"), Rung(4, defer="batch")),
)
policies = st.sampled_from(
    [
        PATIENT,
        PATIENT,
        PATIENT,
        Policy(),
        Policy(max_wait=2.0),
        Policy(max_queue=2),
        Policy.strict(),
        LADDER,
        LADDER,
    ]
)

said = st.dictionaries(st.sampled_from(DIMENSIONS), st.integers(0, 3000), max_size=3)
signals = st.builds(
    Signal,
    st.sampled_from([*Answer, Answer.ACCEPTED, Answer.OVERLOADED, Answer.OVERLOADED]),
    st.sampled_from([None, 0.5, 2.0]),
    said,
    said,
)


FIELDS = {
    "offer": ("tenant", "gate", "cost", "policy", "head_start", "session", "timeout"),
    "chain": ("pick", "cost"),
    "settle": ("pick", "usage"),
    "withdraw": ("pick",),
    "retry": ("pick", "delay", "refused"),
    "pause": ("gate", "delay"),
    "set_quota": ("tenant", "quota"),
    "hear": ("pick", "signal"),
    "resume": ("gate",),
    "look": ("pick",),
    "advance": (),
}
"""What of an operation matters, by its kind: nothing else is drawn."""


def ops(
    kinds: Sequence[str], tenants: int = 3, gates: Sequence[str] = ("",), **fixed: Any
) -> st.SearchStrategy[Op]:
    """One operation of the given kinds; keyword arguments replace what would be drawn."""
    drawn: dict[str, Any] = {
        "gap": gaps,
        "tenant": st.sampled_from("abcdefgh"[:tenants]),
        "gate": st.sampled_from(list(gates)),
        "pick": st.integers(0, 50),
        "cost": small_costs,
        "policy": policies,
        "head_start": st.sampled_from([0, 0, 0, NS, 10 * NS]),
        "session": st.sampled_from([None, None, None, "s", "t"]),
        "timeout": st.one_of(st.none(), st.none(), st.integers(1, 40).map(lambda n: n * 100 * MS)),
        "usage": usages,
        "delay": st.integers(0, 30).map(lambda n: n * 100 * MS),
        "refused": st.booleans(),
        "quota": quotas,
        "signal": signals,
    }
    for name, value in fixed.items():
        drawn[name] = value if isinstance(value, st.SearchStrategy) else st.just(value)
    # Not `builds`, which would draw the fields that are left out, by their types.
    return st.one_of(
        [
            st.fixed_dictionaries(
                {"kind": st.just(kind), **{name: drawn[name] for name in ("gap", *FIELDS[kind])}}
            ).map(lambda fields: Op(**fields))
            for kind in kinds
        ]
    )
