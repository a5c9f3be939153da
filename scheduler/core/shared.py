"""A gate as a store keeps it: the state of one row, and what may be asked of it while that is locked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scheduler.core.account import Amounts, shape_of
from scheduler.core.agenda import Agenda
from scheduler.core.entry import RUNNING
from scheduler.core.fairness import fair_cost, weighted
from scheduler.core.following import NEVER
from scheduler.core.gate import COUNTED, Gate, Turn
from scheduler.core.limits import limits_of
from scheduler.core.policy import Policy
from scheduler.core.quota import NOTHING, Cost, Usage
from scheduler.core.signals import Upstream
from scheduler.core.stored import StoredJob, TenantState

PLAIN = (
    "hold",
    "paused_until",
    "closed_until",
    "cut",
    "cut_at",
    "cut_from",
    "failures",
    "ramp",
    "ramped_at",
    "lines",
    "crowd",
    "as_of",
    "processed",
    "stuck",
    "stood",
)
"""What is kept as it is."""


class SharedGate(Gate):
    """A gate whose lines are in a store: only some of them are here, while somebody decides over them.

    Nobody passes before `as_of`, the time of the last change that may let somebody pass; all that happened
    up to `processed` has been decided. `stuck`: since when a job could pass that no worker takes, None if
    there is none. `due`: when somebody can pass at the earliest, None if that takes a change; `calls`: when
    one can who needs no worker. None of that is a limit of the gate. `stood`: how many heads stand here; who
    keeps the lines counts them.

    While lines are here, `calling` holds those whose head runs elsewhere, and needs a slot of the gate only;
    in a `crowded` one they pass those that lack a worker. `limit`: the last turn up to which all are here who
    stand; None if all are. `absent`: tenants whose heads stood here until their lines changed, and take their
    places anew at that time, which is yet to come. For those who want to join: the turns of the first of
    these `heads`, and how many lines are `coming`, since something of them is due.
    """

    __slots__ = (
        "absent",
        "as_of",
        "calling",
        "calls",
        "coming",
        "crowded",
        "due",
        "heads",
        "limit",
        "probe_id",
        "processed",
        "stood",
        "stuck",
    )

    def __init__(self, name: str, upstream: Upstream, now: int) -> None:
        super().__init__(name, upstream, now)
        self.as_of = self.processed = now
        self.stuck: int | None = None
        self.due: int | None = None
        self.calls: int | None = None
        self.calling: Agenda[Turn] = Agenda()
        self.crowded = False
        self.limit: tuple[int, int] | None = None
        self.absent: set[str] = set()
        self.probe_id: int | None = None
        self.coming = self.stood = 0
        self.heads: Sequence[tuple[int, int]] = ()

    # --- kept ---------------------------------------------------------------------------------------

    def keep(self) -> dict[str, Any]:
        """All of it, but for `due`, `calls` and the slots in use, as values that JSON knows."""
        fair = self.fair
        return {
            "zeros": self.zeros,
            "backlog": self.backlog,
            "told": self.told,
            "refused": list(self.refused.items()),
            "fair": [fair.period, fair.virtual, fair.served],
            "probe": self.probe_id,
            **{name: getattr(self, name) for name in PLAIN},
        }

    @classmethod
    def kept(cls, name: str, upstream: Upstream, state: Mapping[str, Any], running: int) -> SharedGate:
        """The gate of which `keep` has told, with so many slots in use."""
        gate = cls(name, upstream, 0)
        for plain in PLAIN:
            setattr(gate, plain, state[plain])
        gate.told = dict(state["told"])
        gate.shape = shape_of(limits_of(gate))
        gate.zeros, gate.backlog = list(state["zeros"]), list(state["backlog"])
        gate.refused = dict(state["refused"])
        gate.fair.period, gate.fair.virtual, gate.fair.served = state["fair"]
        gate.probe_id = state["probe"]
        gate.free = gate.slots - running
        return gate

    def due_by(self, time: int) -> None:
        """Somebody may pass at `time`, if not before."""
        if self.due is None or time < self.due:
            self.due = time
        if self.calls is None or time < self.calls:
            self.calls = time

    # --- jobs come and go ---------------------------------------------------------------------------

    def join(self, state: TenantState, now: int, first: bool) -> None:
        """One more job belongs to the tenant's line; `first`: it may be the one whose turn it is."""
        line = state.line(self.name)
        if not line.waiting:
            self.lines += 1
            self.crowd += state.shape.share
        line.waiting += 1
        if first:
            self.coming += line.due is None or line.due > now  # once, however many join together
            line.due_by(now)

    def leave(self, state: TenantState) -> None:
        """A job belongs to the tenant's line no more."""
        line = state.line(self.name)
        line.waiting -= 1
        if not line.waiting:
            line.due = line.start = line.front = line.entered = None
            self.lines -= 1
            self.crowd = self.crowd - state.shape.share if self.lines else 0.0

    def count(self, cost: Cost, sign: int) -> None:
        """A job stands in its line, or no longer."""
        amounts = self.shape.amounts(cost)
        self.backlog = [work + sign * amount for work, amount in zip(self.backlog, amounts, strict=True)]

    # --- grants end ---------------------------------------------------------------------------------

    def settle(
        self, state: TenantState, job: StoredJob, usage: Usage | None, now: int, learn: bool = True
    ) -> None:
        """End a grant: `usage` replaces what was charged, in buckets and tags, and its slot is free."""
        if job.holder is None:
            if self.free <= 0:
                self.move(now)
            self.free += 1
            if learn:
                self.hold += (now - job.slot - self.hold) >> 3
        if usage is not None:
            self.replace(state, job, usage, now)
        self.give_up(job.sequence, now)

    def replace(self, state: TenantState, job: StoredJob, usage: Usage, now: int) -> None:
        """Replace what was charged for a grant by what was used, in buckets and tags."""
        charged, real = self.shape.amounts(job.cost), self.shape.amounts(usage)
        self.exchange(charged, real)
        self.correct(state, job, usage, now)
        if charged != real:
            self.move(now)

    def give_up(self, job: int, now: int) -> None:
        """A job is over; if it was to probe, it did so without a word about the limit: the next one may."""
        if self.probe_id == job:
            self.probe_id, self.closed_until, self.paused_until = None, now, NEVER

    def move(self, now: int) -> None:
        """Something changed for those who stand here: nobody passes before it did."""
        self.as_of = max(self.as_of, now)
        if self.lines:
            self.due_by(now)

    def correct(self, state: TenantState, job: StoredJob, usage: Usage, now: int) -> None:
        """Replace a grant's cost by what was used, in the tenant's finish tag; its head gets another turn."""
        line = state.line(self.name)
        if job.period and job.period == line.period == self.fair.period:
            step = -self._step(state, job.cost)
            if usage != NOTHING:  # one that did not begin owes nothing
                step += self._step(state, usage)
            line.finish = max(0, line.finish + step)
            line.move(now)

    def owes(self, state: TenantState) -> bool:
        """Whether forgetting the tenant would change who is served next."""
        line = state.lines.get(self.name)
        ahead = line is not None and line.period == self.fair.period and line.finish > self.fair.virtual
        return ahead and self.lines > 0

    def _step(self, state: TenantState, cost: Cost) -> int:
        return weighted(fair_cost(self.shape, self.shape.amounts(cost)), state.shape.weight)

    # --- while lines are here -----------------------------------------------------------------------

    def here(self, states: Iterable[TenantState]) -> None:
        """Know the tags of these tenants."""
        for state in states:
            line = state.lines.get(self.name)
            if line is not None and line.period == self.fair.period:
                self.fair.finish[state.name] = line.finish
            if line is not None and line.entered is not None:
                self.fair.entered[state.name] = line.entered

    def ready(self, amounts: Amounts) -> int:
        """See `Account.ready`; not before the last change."""
        return max(self.as_of, super().ready(amounts))

    def turn(self, slot: bool) -> Turn | None:
        """Whose turn it is; `slot`: whether there is one here, and a worker."""
        turns = [self.holding.first()]
        if self.free > 0:
            turns.append(self.calling.first())
            if slot or not self.crowded:
                turns.append(self.eligible.first())
        return min((turn for turn in turns if turn is not None), default=None)

    def serve(self, tenant: str, start: int, step: int) -> int:
        """See `Gate.serve`: the virtual time passes no head that waits for a slot."""
        heads = [head[0] for head in (self.eligible.first(), self.calling.first()) if head is not None]
        return self.fair.serve(tenant, start, step, min([start, *heads]))

    def before(self, start: int, key: int) -> int:
        """See `Gate.before`."""
        found = sum(head < (start, key) for head in self.heads) + self.coming
        return found if found < COUNTED else self.standing

    @property
    def standing(self) -> int:
        """How many heads stand here, or are about to."""
        return self.stood + self.coming

    @property
    def backlogged(self) -> bool:
        """Whether anybody eligible waits here."""
        here = super().backlogged or self.calling.first() is not None
        return here or self.limit is not None or bool(self.absent)


def granted(gate: str, row: Any, cost: Cost) -> StoredJob:
    """A grant as a store keeps it: what it takes to end it."""
    job = StoredJob(row["tenant"], row["id"], row["arrival"], Policy(), cost)
    job.gate, job.slot, job.period, job.state = gate, row["slot"], row["period"], RUNNING
    if row["holder"] is not None:
        job.follow(row["holder"], row["arrival"], 1)
    return job
