"""Settlement: what one transaction records of jobs that end or go back, and whom it tells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from asyncpg import Connection, Record

from scheduler.core import learning, ledger
from scheduler.core.ladder import look_at
from scheduler.core.policy import Reason
from scheduler.core.quota import NOTHING, Cost, Quota, Usage
from scheduler.core.shared import SharedGate, granted
from scheduler.core.stored import StoredJob, TenantState
from scheduler.stores.postgres import estimating, rows
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.reasons import REFUSED, kind_of, too_late, why
from scheduler.stores.postgres.statements import statement
from scheduler.stores.postgres.worsening import doubtful, walk
from scheduler.stores.values import CANCELLED, FAILED, FAR, Again, Ended

NOTIFIED = 400
"""Ids in one notification: a payload holds 8,000 bytes."""

Ending = Ended | Again


async def announce(connection: Connection, ids: Sequence[int]) -> None:
    """Tell those who wait for these jobs that they are over."""
    for part in payloads(ids):
        await connection.execute("select pg_notify('waitline_done', $1)", part)


def payloads(ids: Sequence[int]) -> list[str]:
    """Ids as the texts of notifications."""
    return [" ".join(map(str, ids[at : at + NOTIFIED])) for at in range(0, len(ids), NOTIFIED)]


@dataclass
class Settlement:
    """What one transaction records of jobs that ended or go back."""

    locked: Locked
    now: int
    ended: list[tuple[int, int, str | None, str | None]] = field(default_factory=list)
    """(id, state, result, kind)."""
    again: list[tuple[int, int | None, int | None, bool, int, int | None]] = field(default_factory=list)
    """(id, place, returns, paid, attempt, look)."""
    left: list[int] = field(default_factory=list)
    """Callers that ran their own work: nobody asks what became of them, so nothing is kept."""
    grown: dict[int, Cost] = field(default_factory=dict)
    """What running calls are charged for now, by job."""
    free: list[tuple[int, bool]] = field(default_factory=list)
    """Deferred jobs that others may take, and whether their tries were no attempts."""
    sessions: dict[tuple[str, str], int] = field(default_factory=dict)
    """(tenant, session) of the jobs that ended, and when they did."""
    lessons: list[estimating.Lesson] = field(default_factory=list)
    """From what jobs used whose cost was an estimate."""
    tightest: dict[str, int] = field(default_factory=dict)
    """Of tenants of which jobs go back: when the first of those has to start."""
    looked: set[int] = field(default_factory=set)
    """Jobs whose ladders were looked at and do not help: these are refused if they wait for too long."""

    def end(self, row: Record, ending: Ended, refused: bool = False) -> None:
        """A try that is over for good. `refused`: the upstream did no work; it costs its gate a call."""
        state = self.locked.states[row["tenant"]]
        slots = int(row["holder"] is None)
        cost = rows.cost_of(*row["cost"])
        gate = self.locked.gate_of(row["gate"])
        if not row["deferred"]:  # which holds nothing
            self._settle(state, gate, cost, NOTHING if refused else ending.usage, slots)
            if gate is not None:
                job = granted(gate.name, row, cost)
                used = self._refused(gate, state, job, row) if refused else ending.usage
                gate.settle(state, job, used, self.now)
        counted, usage = row["counted"], ending.usage
        if counted is not None and usage is not None and learning.teaches(usage):
            self.lessons.append(estimating.Lesson(state.name, estimating.name_of(gate), counted, usage))
        self.leave(row, ending.state, ending.result, ending.kind)

    def grow(self, row: Record, output_tokens: int) -> None:
        """A running call has produced so many output tokens: what is above its cost is charged now."""
        state, cost = self.locked.states[row["tenant"]], self.grown.get(row["id"], rows.cost_of(*row["cost"]))
        gate = self.locked.gate_of(row["gate"])
        metered = state.shape.metered or (gate is not None and gate.shape.metered)
        if row["deferred"] or not metered or output_tokens <= cost.output_tokens:
            return
        usage = Usage(cost.requests, cost.input_tokens, output_tokens)
        ledger.correct(state, cost, usage, self.now)
        if gate is not None:
            gate.replace(state, granted(gate.name, row, cost), usage, self.now)
        self.locked.worsen(state.name)
        self.grown[row["id"]] = Cost(usage.requests, usage.input_tokens, usage.output_tokens)

    def leave(
        self, row: Record, state: int, result: str | None, kind: str | None, at: int | None = None
    ) -> None:
        """A job that is over, after a try or without, since `at` or now."""
        if row["home"] is not None and state != FAILED:
            self.left.append(row["id"])
        else:
            self.ended.append((row["id"], state, result, kind))
        if row["session"] is not None:
            self.sessions[row["tenant"], row["session"]] = self.now if at is None else at

    def repeat(self, row: Record, ending: Again) -> None:
        """A try after which the job goes back to its line, at once or after a backoff, by its key.

        A wait that its policy or deadline does not allow ends it instead, and so does a wish to cancel it
        that came during the try.
        """
        if row["deferred"] and not (ending.counted or ending.refused or row["stop"]):
            self.free.append((row["id"], True))  # its worker stops: another one goes on with it
            return
        gate = self.locked.gate_of(row["gate"])
        after = ending.after if gate is None else max(ending.after, gate.opens - self.now)
        late = too_late(row, self.now, after)
        if gate is not None and gate.closed_until is not None:
            late = str(Reason.SPEND_LIMIT)
        elif late == Reason.MAX_WAIT and gate is not None and gate.opens - self.now >= after:
            late = str(Reason.PAUSE)
        over, kind = (CANCELLED, "cancelled") if row["stop"] else (FAILED, late)
        if kind is not None:
            if gate is not None and not row["stop"]:
                after = gate.wait_of_refused(self.now + after, self.now)
            why = json.dumps(max(after, 1)) if kind in REFUSED else None
            ended = Ended(ending.id, ending.tenant, ending.tries, over, why, kind, ending.usage)
            self.end(row, ended, ending.refused)
            return
        state, cost = self.locked.states[row["tenant"]], rows.cost_of(*row["cost"])
        used, look = rows.reserved_of(row) if ending.refused else ending.usage, None
        if not row["deferred"]:
            self._settle(state, gate, cost, used)
        if gate is not None:
            look = self._again_at(gate, row, ending._replace(usage=used), after)
        cost = rows.reserved_of(row) or cost
        state.waiting += 1
        if row["max_wait"] is not None:
            until = min(self.now + row["max_wait"], FAR)
            self.tightest[state.name] = min(until, self.tightest.get(state.name, until))
        paid = ending.refused and not row["deferred"]
        place, returns = row["arrival"] - row["head_start"], None
        if after > 0:
            place, returns = None, self.now + after
            state.due_by(returns, row["gate"])
        else:
            ledger.move(state, self.now)
            self.locked.enter(state, row["gate"], cost, paid, self.now)
            self.locked.worsen(state.name)
        self.again.append((row["id"], place, returns, paid, row["attempt"] - (not ending.counted), look))

    def _settle(
        self, state: TenantState, gate: SharedGate | None, cost: Cost, usage: Usage | None, slots: int = 1
    ) -> None:
        """End a grant of a tenant; more than was charged for it makes those wait longer who are in line."""
        ledger.settle(state, cost, usage, self.now, slots)
        shapes = [state.shape] if gate is None else [state.shape, gate.shape]
        if usage is not None and any(shape.exceeds(usage, cost) for shape in shapes):
            self.locked.worsen(state.name)

    def _refused(self, gate: SharedGate, state: TenantState, job: StoredJob, row: Record) -> Usage | None:
        """Give back in fairness what an upstream refused; what the gate's buckets are charged for it."""
        gate.correct(state, job, NOTHING, self.now)
        job.period = 0
        return rows.reserved_of(row)

    def _again_at(self, gate: SharedGate, row: Record, ending: Again, after: int) -> int | None:
        """End a try at a gate after which the job waits there again; when its ladder is looked at."""
        state = self.locked.states[row["tenant"]]
        job = granted(gate.name, row, rows.cost_of(*row["cost"]))
        if not row["deferred"]:
            if ending.refused:
                self._refused(gate, state, job, row)
            gate.settle(state, job, ending.usage, self.now, learn=not ending.refused)
        gate.join(state, self.now, first=False)
        if row["ladder"] is None or after > 0:
            return None  # one that comes back later is looked at when it comes in
        rows.read_rungs(job, row)
        return look_at(job, self.now)

    def withdraw(self, row: Record, state: int, kind: str, at: int, why: str | None = None) -> None:
        """A waiting job leaves its line; those behind it move up at that time, however late it is noticed."""
        tenant = self.locked.states[row["tenant"]]
        tenant.waiting -= 1
        gate, cost = self.locked.gate_of(row["gate"]), rows.cost_of(*row["cost"])
        if row["place"] is not None:
            if not row["paid"]:
                tenant.add_work(cost, -1)
            if gate is not None:
                gate.count(cost, -1)
        if gate is not None:
            gate.leave(tenant)
            gate.give_up(row["id"], at)
        if row["paid"]:  # for a try that was refused, and it will have no other
            ledger.correct(tenant, cost, NOTHING, at)
        if row["place"] is not None or row["paid"]:
            ledger.move(tenant, at)
            self.locked.stir(row["tenant"])
        self.leave(row, state, why, kind, at)

    async def requota(self, connection: Connection, quotas: Mapping[str, Quota]) -> None:
        """Change limits of tenants; those of their jobs that can never fit any more fail.

        But for jobs in backoff, which are looked at when they return.
        """
        lines: dict[str, list[Record]] = {tenant: [] for tenant in quotas}
        for row in await connection.fetch(statement("waiting_lines"), sorted(quotas)):
            lines[row["tenant"]].append(row)
        parked = await connection.fetch(statement("parked"), sorted(quotas))
        for tenant, quota in quotas.items():
            self._requota(tenant, quota, lines[tenant])
        for row in parked:
            never = self.locked.states[row["tenant"]].shape.never(rows.cost_of(*row["cost"]))
            if never is not None:
                self.withdraw(row, FAILED, str(Reason.NEVER), self.now, json.dumps(never))

    def _requota(self, tenant: str, quota: Quota, line: Sequence[Record]) -> None:
        state, jobs = self.locked.states[tenant], {row["id"]: row for row in line}
        share = state.shape.share
        jobs_in_line = [rows.read_job(row) for row in line]
        gone = ledger.requota(state, quota, self.now, jobs_in_line, self.locked.gates)
        for own in state.lines.values():
            if own.waiting:
                self.locked.gates[own.gate].crowd += state.shape.share - share
        for job in gone:
            self.leave(jobs[job.sequence], FAILED, why(job), kind_of(job))
        self.locked.worsen(tenant)

    @property
    def over(self) -> list[int]:
        """All that ended."""
        return [*(job for job, *_ in self.ended), *self.left]

    async def save(self, connection: Connection) -> None:
        """Write it all, tell whom it concerns, and refuse whoever has to wait for too long because of it."""
        await self._write(connection)
        await self.judge(connection)

    async def judge(self, connection: Connection, gate: str | None = None) -> None:
        """Judge those again whose waits got worse; only those at one gate, if it is given."""
        walked: set[str] = set()
        while self.locked.worse and (names := await doubtful(connection, self.locked, self.now)):
            walked.update(names)
            found = await walk(connection, self.locked, names, self.now, self.looked, gate)
            refused = Settlement(self.locked, self.now)
            for row, start in found.late:
                refused.withdraw(row, FAILED, str(Reason.MAX_WAIT), self.now, str(start - self.now))
            if found.late:
                await refused._write(connection)
            self.locked.worse |= found.again
        if walked:
            await connection.execute(statement("tighten"), sorted(walked))

    async def _write(self, connection: Connection) -> None:
        over = self.over
        unparked = await unpark(connection, self.locked, self.sessions, over)
        ended, again = list(zip(*self.ended, strict=True)), list(zip(*self.again, strict=True))
        await connection.execute(
            statement("settle"),
            *self.locked.columns(),
            *(ended or ([], [], [], [])),
            self.now,
            *(again[:5] or ([], [], [], [], [])),
            self.locked.sooner(),
            payloads(over),
            unparked,
            [rows.write_echoes(state.echoes) for state in self.locked.states.values()],
            self.left,
            again[5] if again else [],
            [self.tightest.get(name) for name in self.locked.states],
        )
        await self.locked.save_gates(connection)
        if self.grown:
            outputs = [cost.output_tokens for cost in self.grown.values()]
            await connection.execute(statement("grow"), list(self.grown), outputs)
        if self.free:
            await connection.execute(statement("let_go_deferred"), *zip(*self.free, strict=True), FAR)
            await connection.execute("select pg_notify('waitline_deferred', '')")
        await estimating.learn(connection, self.lessons)


async def unpark(
    connection: Connection, locked: Locked, left: Mapping[tuple[str, str], int], over: Sequence[int]
) -> list[int]:
    """Let the next job of each session into its line. `left`: when another one of (tenant, session) left.

    `over`: the jobs that end in this transaction. Returns the jobs that belong into their lines now.
    """
    if not left:
        return []
    tenants, sessions = zip(*sorted(left), strict=True)
    found = await connection.fetch(statement("next_of_session"), tenants, sessions, over)
    for row in found:
        state = locked.states[row["tenant"]]
        locked.worsen(state.name)
        ledger.move(state, left[row["tenant"], row["session"]])
        locked.enter(state, row["gate"], rows.cost_of(*row["cost"]), row["paid"], state.as_of)
    return [row["id"] for row in found]
