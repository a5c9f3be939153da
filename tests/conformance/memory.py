"""One side: a script played on the engine in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.core.account import SLOT_FLOOR
from scheduler.core.engine import Engine
from scheduler.core.entry import Entry, State
from scheduler.core.policy import Cause, Overload, Reason, Refusal
from scheduler.core.signals import Upstream
from tests.conformance.record import Answer, Quotas, Record
from tests.core.play import START, Op, Play, engine


class Forgetful(Engine):
    """Where no gate is declared, the store does not learn for how long jobs run."""

    def _free(self, entry: Entry, now: int, learn: bool) -> tuple[bool, bool, bool]:
        return super()._free(entry, now, learn=False)


@dataclass
class Memory(Play):
    """The engine in memory, with one gate without limits unless others are given.

    `positions`: of each job, as a quote had it.
    """

    positions: list[int | None] = field(default_factory=list)
    looks: list[int | None] = field(default_factory=list)
    """When jobs in line were expected to start, each time that somebody looked."""
    loose: set[str] = field(default_factory=set)
    """Tenants that refused for lack of a slot while somebody stood outside the line: the times differ."""

    @classmethod
    def with_quotas(
        cls, quotas: Quotas, gates: Mapping[str, Upstream] | None = None, overload: Overload | None = None
    ) -> Memory:
        made = engine(quotas, gates, kind=Engine if gates else Forgetful)
        made.overload = overload
        return cls(made, by_number=True)

    def run(self, ops: Sequence[Op]) -> Memory:
        super().run(ops)
        return self

    def do(self, op: Op) -> None:
        """Play one operation, after all wake-ups before it."""
        while (wake := self.engine.wake) is not None and wake <= self.now + op.gap:
            self.engine.advance(wake)
            self.listen()
        super().do(op)

    def add(self, now: int, entry: Entry, tenant: str, gate: str) -> Refusal | None:
        self.forget_hold()
        twin = Entry(entry.policy, entry.cost, **entry.__dict__)
        self.positions.append(self.engine.quote(now, tenant, gate, twin).position)
        if entry.policy.ladder:  # it may stand at another gate at once
            self.positions[-1] = None
        line = self.engine.tenants[tenant].lines.get(gate) if tenant in self.engine.tenants else None
        if line is not None and line.outside:
            self.positions[-1] = None
        return super().add(now, entry, tenant, gate)

    def forget_hold(self) -> None:
        """The store learns no mean holding time of slots: it always expects the least."""
        for account in (*self.engine.gates.values(), self.engine.root):
            account.hold = SLOT_FLOOR

    def look(self, op: Op) -> None:
        """Note when a job that stands in its line is expected to start."""
        self.engine.advance(self.now)
        self.listen()
        self.forget_hold()
        entry = self.pick(op)
        stands = entry is not None and entry.state is State.WAITING and not entry.outside
        self.looks.append(
            self.engine.expected(self.now, entry).expected - START if entry is not None and stands else None
        )

    def record(self) -> Record:
        """What became of everything."""
        record, refused = Record(looks=self.looks), set()
        for number, entry in enumerate(self.jobs):
            if hasattr(entry, "promised"):
                if entry.shared.name:
                    served = entry.shared.name, entry.rung, entry.model, entry.max_tokens
                    record.served[number] = served
                record.answers.append(("accepted", entry.promised - entry.arrival))
                record.positions.append(self.positions[number])
            else:
                refused.add(number)
                record.positions.append(None)
                record.answers.append(self.refused(number, entry))
        for told in self.told:
            if told.what == "running":
                record.grants[self.jobs[told.job].owner.name].append((told.job, told.time - START))
        tries = Counter(told.job for told in self.told if told.what == "running")
        for number, entry in enumerate(self.jobs):
            if Cause.OVERLOAD_ORDER in entry.delayed and tries[number] < 2:
                record.overtaken.add(number)
            if number not in refused and entry.state is State.EXPIRED:
                record.ends[number] = "timeout"
            elif number not in refused and entry.state is State.REFUSED and entry.refusal is not None:
                late = entry.refusal.reason is Reason.DEADLINE  # its next try would be
                record.ends[number] = "timeout" if late else str(entry.refusal.reason)
        return record

    def retry(self, op: Op) -> None:
        """Put a running job back. The engine lets it return at the instant of a deadline that is over."""
        entry = self.pick(op, State.RUNNING)
        if entry is not None and entry.holder is not None:  # whoever runs its own work tries again by itself
            self.engine.advance(self.now)
            return
        over = entry is not None and entry.expires is not None and entry.expires <= self.now
        super().retry(op._replace(delay=max(op.delay, 1)) if over else op)

    def refused(self, number: int, entry: Entry) -> Answer:
        """The answer to a job that may not wait; no time where the store counts those outside the line."""
        refusal = entry.refusal
        assert refusal is not None
        if refusal.reason is Reason.NEVER:
            return ("never", *(refusal.limit or ()))
        if self.positions[number] is None:  # by whatever bound: a slot may be what it would wait for
            self.loose.add(entry.owner.name)
        return (
            "refused",
            str(refusal.reason),
            None if entry.owner.name in self.loose else refusal.retry_after,
        )
