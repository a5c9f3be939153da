"""A job and a tenant as a store keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.core.account import Account, Shape, shape_of
from scheduler.core.entry import RUN_BITS, SEQUENCE_BITS, Entry
from scheduler.core.policy import Policy
from scheduler.core.quota import ONE, Cost, Quota
from scheduler.core.tenant import Echo, Tenant

Kept = tuple[list[int], int, int, int]
"""An echo as it is kept: zeros, time, last, count."""


class StoredJob(Entry):
    """A job as a store keeps it: an entry of the engine with the number that the store gave it.

    `sequence`, its number, orders the jobs of a line that arrived at the same time; `tenant` is the tenant's
    name; `since` is when it joined its line, at its arrival or when its backoff was over, or when it left it
    without a grant. `home` names the process of a caller that runs its own work. The `holder` of a
    continuation stands in for its run: with the number of that, with its place in line as arrival, and with
    the number of the call.
    """

    __slots__ = ("since", "tenant")

    home: str | None = None
    watched = False
    parked: bool = False
    """Whether it stands outside of its line, in backoff, until it arrives."""
    climbs: bool = False
    """Whether it has a ladder, which is not here."""
    most_deferred: int = 0
    """How many jobs may be deferred when its ladder is looked at."""

    def __init__(self, tenant: str, number: int, arrival: int, policy: Policy, cost: Cost = ONE) -> None:
        super().__init__(policy, ONE if cost is ONE or cost == ONE else cost)
        self.tenant = tenant
        self.renumber(number, arrival)

    def renumber(self, number: int, arrival: int) -> None:
        """Give it its number, arrival and key: a store knows them once it holds its locks."""
        self.sequence = number
        self.arrival = self.since = arrival
        self.key = ((arrival - self.head_start << SEQUENCE_BITS) + number) << RUN_BITS

    def want(self, *, head_start: int = 0, session: str | None = None, deadline: int | None = None) -> None:
        """Say what few jobs want; `deadline` in nanoseconds of the store's clock."""
        if head_start:
            self.head_start, self.plain = head_start, False
            self.renumber(self.sequence, self.arrival)
        if session is not None:
            self.session, self.plain = session, False
        if deadline is not None:
            self.expires, self.plain = deadline, False

    def follow(self, run: int, place: int, call: int) -> None:
        """Make it the `call`-th continuation of the run of this number and place: it goes by that key."""
        self.holder, self.plain = StoredJob(self.tenant, run, place, self.policy), False
        self.holder.calls = call - 1
        self.place_in_order(self.arrival, self.sequence)


def _echo(kept: Kept) -> Echo:
    echo = Echo(kept[0], 0)
    echo.time, echo.last, echo.count = kept[1:]
    return echo


@dataclass(slots=True)
class LineState:
    """A row for a tenant at a shared gate: its line, and its place in the fair order.

    `waiting`: jobs in line or outside for a while. `due`: the first time at which its head can come to stand
    at the gate, None if that takes a change. `front`: the key of that head, None if it is yet to be found.
    While it stands there, `start` is its tag, and `calls` says that it needs no worker. `finish`: the
    tenant's finish tag, made in that busy `period`. `entered`: the virtual time when it came to stand there.
    `step`: the `after` of the rung that the tenant took last at this gate, in nanoseconds; 0 once its waits
    are shorter than that. `late`: until when another order held, since its oldest job had waited too long.
    """

    gate: str
    tenant: str
    waiting: int = 0
    due: int | None = None
    start: int | None = None
    front: int | None = None
    calls: bool = False
    finish: int = 0
    period: int = 0
    entered: int | None = None
    step: int = 0
    late: int | None = None

    def due_by(self, time: int) -> None:
        """Something may happen at `time`, if not before."""
        if self.due is None or time < self.due:
            self.due = time

    def move(self, time: int) -> None:
        """Something changed for it: its head takes its place anew."""
        if self.waiting:
            self.start = self.front = None
            self.due_by(time)


@dataclass(slots=True)
class TenantState:
    """A tenant's row.

    `zeros`: its buckets (see `bucket`). `running`: slots in use. `waiting`: jobs in line or outside for a
    while; `work`: what those in line will be charged, per bucket in its units. Nothing is granted before
    `as_of`, the time of the last change that moved those who wait. `due` is the first time at which
    anything can happen, None if that takes a change. `echoes`: the phantoms of those refused, by gate.

    `lines`: its lines at shared gates, by their names. Jobs of these count in `waiting` and `work` as all
    others do, but what happens to them is due there.

    `late` is until when the last decision found that another order held where no gate is, if it did.

    `again` is not kept, it is what the last decision found out: when one without slots of its own should ask
    again, although something is due before that, since that is for others to take. None says that `due` is
    right for everybody.
    """

    name: str
    quota: Quota
    zeros: list[int]
    as_of: int
    running: int = 0
    waiting: int = 0
    work: list[int] = field(default_factory=list)
    due: int | None = None
    echoes: dict[str, Kept] = field(default_factory=dict)
    lines: dict[str, LineState] = field(default_factory=dict, compare=False)
    again: int | None = field(default=None, compare=False)
    late: int | None = field(default=None, compare=False)
    limits: tuple[Quota, Shape] | None = field(default=None, repr=False, compare=False)
    """A quota and its shape, kept because to find the shape costs more than all that is asked of it."""

    @classmethod
    def new(cls, name: str, quota: Quota, now: int) -> TenantState:
        """A tenant that was never seen: full buckets."""
        zeros = Account(shape_of(quota), now).zeros
        return cls(name, quota, zeros, now, work=[0] * len(zeros))

    @property
    def shape(self) -> Shape:
        """Its quota, ready for arithmetic."""
        if self.limits is None or self.limits[0] is not self.quota:
            self.limits = self.quota, shape_of(self.quota)
        return self.limits[1]

    @property
    def free(self) -> bool:
        """Whether there is a slot to be had."""
        return self.running < self.shape.concurrency

    def tenant(self) -> Tenant:
        """What the engine decides over."""
        tenant = Tenant(self.name, self.shape, self.as_of)
        tenant.zeros = self.zeros
        tenant.free = self.shape.concurrency - self.running
        if self.echoes:
            tenant.echoes = {name: _echo(kept) for name, kept in self.echoes.items()}
        return tenant

    def remember(self, tenant: Tenant, gate: str) -> None:
        """Keep the echo of those refused at a gate, as it is now."""
        echo = (tenant.echoes or {})[gate]
        self.echoes[gate] = echo.zeros, echo.time, echo.last, echo.count

    def add_work(self, cost: Cost, sign: int) -> None:
        """Count a job that joins the line, or leaves it."""
        self.work = [w + sign * a for w, a in zip(self.work, self.shape.amounts(cost), strict=True)]

    def due_by(self, time: int, gate: str | None = None) -> None:
        """Something may be granted at `time`, if not before: in the line at a gate, or where none is."""
        if gate is not None:
            self.lines[gate].due_by(time)
        elif self.due is None or time < self.due:
            self.due = time

    def line(self, gate: str) -> LineState:
        """Its line at a shared gate."""
        line = self.lines.get(gate)
        if line is None:
            line = self.lines[gate] = LineState(gate, self.name)
        return line

    @property
    def ungated(self) -> int:
        """Its waiting jobs that pass no shared gate."""
        return self.waiting - sum(line.waiting for line in self.lines.values())
