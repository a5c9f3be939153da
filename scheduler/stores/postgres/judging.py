"""Judge: jobs that are asked for are accepted or refused under the locks of their tenants, and saved."""

from __future__ import annotations

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter

from asyncpg import Connection

from scheduler.core import ledger, sharing
from scheduler.core.ladder import look_at
from scheduler.core.policy import Outlook, Overload, Reason
from scheduler.core.rungs import Rungs
from scheduler.core.shared import SharedGate
from scheduler.core.signals import News
from scheduler.core.stored import StoredJob
from scheduler.errors import refused
from scheduler.stores.postgres import estimating, rows
from scheduler.stores.postgres.heads import see_heads
from scheduler.stores.postgres.ladders import count_deferred
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.reaching import read_overload
from scheduler.stores.postgres.settlement import Settlement
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import FAR, Accepted, Answer, Request

_key = attrgetter("key")

Saved = tuple[Request, StoredJob, bool]
"""A job that was accepted, and whether it stands outside its line behind another one of its session."""


def _job(request: Request, number: int, now: int, place: int | None = None) -> StoredJob:
    """The job that is asked for, as it arrives now. `place`: of the run that it continues, if that runs."""
    job = StoredJob(request.tenant, number, now, request.policy, request.cost)
    deadline = None if request.timeout is None else now + request.timeout
    job.want(head_start=request.head_start, session=request.session, deadline=deadline)
    if place is not None and request.holder is not None:
        job.follow(request.holder.id, place, request.holder.call)
    return job


class Batch:
    """Requests under the locks of their tenants, judged in the order in which they came."""

    def __init__(self, connection: Connection, requests: Sequence[Request], locked: Locked) -> None:
        self._connection = connection
        self._requests = requests
        self._locked = locked
        self._lines: dict[str, list[StoredJob]] = defaultdict(list)
        self._sessions: Counter[tuple[str, str]] = Counter()
        self._keys: dict[tuple[str, str], tuple[bytes, Accepted]] = {}
        self._places: dict[int, int] = {}
        self._continuations: Counter[str] = Counter()
        self._saved: list[Saved] = []
        self._tightest: dict[str, int] = {}
        self._deferred = 0
        self._overload: Overload | None = None
        self.news: list[News] = []

    async def judge(self) -> list[Answer]:
        """Accept or refuse each, and save what was accepted and what changed."""
        await self._look_up()
        (clock,) = await self._connection.fetch(statement("numbers"), len(self._requests))
        now, numbers = await self._locked.moment(self._connection, clock["now"]), iter(clock["numbers"])
        self._overload = read_overload(clock)
        await self._load_lines(now)
        if any(request.policy.ladder for request in self._requests):
            self._deferred = await count_deferred(self._connection)
        await see_heads(self._connection, self._locked.gates, now)
        answers = [self._one(request, now, numbers) for request in self._requests]
        await self._save()
        await Settlement(self._locked, now).judge(self._connection)
        return answers

    async def _look_up(self) -> None:
        """Load what the judgement of some requests takes beside their tenants' rows."""
        keyed = [r for r in self._requests if r.key is not None]
        if keyed:
            found = await self._connection.fetch(
                statement("keys"), [r.tenant for r in keyed], [r.key for r in keyed]
            )
            for row in found:
                accepted = Accepted(
                    row["id"],
                    0,
                    row["arrival"],
                    row["promised"],
                    row["promised"],
                    row["deadline"] or 0,
                    new=False,
                )
                self._keys[row["tenant"], row["key"]] = row["digest"], accepted
        named = {(r.tenant, r.session) for r in self._requests if r.session is not None}
        if named:
            tenants, sessions = zip(*sorted(named), strict=True)
            for row in await self._connection.fetch(statement("sessions"), tenants, sessions):
                self._sessions[row["tenant"], row["session"]] = row["jobs"]
        calls = [(r.holder.id, r.holder.tries, r.tenant) for r in self._requests if r.holder is not None]
        if calls:
            found = await self._connection.fetch(statement("holders"), *zip(*calls, strict=True))
            self._places = {row["id"]: row["place"] for row in found}
        states, coming = self._locked.states, len(self._requests)
        full = {r.tenant for r in self._requests if states[r.tenant].waiting + coming > r.policy.max_queue}
        if full:
            for row in await self._connection.fetch(statement("count_continuations"), sorted(full)):
                self._continuations[row["tenant"]] = row["number"]

    async def _load_lines(self, now: int) -> None:
        """Load the jobs in line, of those tenants where the judgement takes them."""
        states, coming = self._locked.states, len(self._requests)
        walked = {
            r.tenant
            for r in self._requests
            if r.policy.ladder or ledger.needs_line(states[r.tenant], self._asked(r, 0, now), coming, now)
        }
        if walked:
            for row in await self._connection.fetch(statement("waiting_lines"), sorted(walked)):
                self._lines[row["tenant"]].append(rows.read_job(row))

    def _asked(self, request: Request, number: int, now: int) -> StoredJob:
        """The job of a request: a continuation whose run is over, or lost, stands in line as any caller."""
        place = None if request.holder is None else self._places.get(request.holder.id)
        return _job(request, number, now, place)

    def _one(self, request: Request, now: int, numbers: Iterator[int]) -> Answer:
        known = None if request.key is None else self._keys.get((request.tenant, request.key))
        if known is not None:
            if known[0] == request.digest():
                return known[1]
            return ValueError(f"key: {request.key!r} was used before, with another prompt or session")
        job = self._asked(request, next(numbers), now)
        parked = 0 if request.session is None else self._sessions[request.tenant, request.session]
        try:
            gate = self._choose(request, job, parked, now)
        except ValueError as error:
            return error
        if job.deferred:
            return self._defer(request, job, now)
        return self._join(request, job, gate, parked, now)

    def _choose(self, request: Request, job: StoredJob, parked: int, now: int) -> SharedGate | None:
        """The gate that a job passes: the one it is for, or the one to which its ladder leads."""
        gate = gate_for(self._locked.gates, request.gate)
        if gate is None:
            if request.policy.ladder:
                raise ValueError("policy: a ladder over a store needs gates; gates=Quota() has no limits")
            return None
        job.gate = gate.name
        if request.policy.ladder:
            self._step_aside(request, job, parked, now)
        return self._locked.gates[job.gate]

    def _join(
        self, request: Request, job: StoredJob, gate: SharedGate | None, parked: int, now: int
    ) -> Answer:
        """Let a job into its line, or refuse it."""
        state, line = self._locked.states[request.tenant], self._lines[request.tenant]
        known = line, parked, self._continuations[request.tenant], self._overload
        if gate is None:
            found, refusal = ledger.outlook(state, job, now, *known)
        else:
            found, refusal = sharing.outlook(state, gate, job, now, *known)
        if refusal is not None:
            return refused(request.tenant, refusal)
        job.promised = found.promised
        if gate is None:
            ledger.join(state, job, now, outside=parked > 0)
        else:
            sharing.join(state, gate, job, now, outside=parked > 0, overload=self._overload)
        self._continuations[request.tenant] += job.holder is not None
        self._tighten(job)
        if not parked:
            if line and job.key < line[-1].key:
                self._locked.worsen(job.tenant)
            insort(line, job, key=_key)
        return self._accepted(request, job, found, parked)

    def _tighten(self, job: StoredJob) -> None:
        """Note until when a job has to start."""
        if job.policy.max_wait_ns is not None:
            until = min(job.arrival + job.policy.max_wait_ns, FAR)
            self._tightest[job.tenant] = min(until, self._tightest.get(job.tenant, until))

    def _step_aside(self, request: Request, job: StoredJob, parked: int, now: int) -> None:
        """Let a job that cannot start at once take the rungs that help."""
        state, line = self._locked.states[request.tenant], self._lines[request.tenant]
        most = request.most_deferred
        rungs = Rungs(now, self._locked.gates, state, line, deferred=self._deferred, most=most)
        rungs.overload = self._overload
        if not rungs.startable(job, now, parked):
            rungs.step_aside(job, now, parked)
            self.news += rungs.news

    def _defer(self, request: Request, job: StoredJob, now: int) -> Accepted:
        """Accept a job that is served outside of all lines."""
        job.promised, self._deferred = now, self._deferred + 1
        return self._accepted(request, job, Outlook(0, now, now, Reason.STRICT), 1)

    def _accepted(self, request: Request, job: StoredJob, found: Outlook, parked: int) -> Accepted:
        self._saved.append((request, job, parked > 0))
        if job.session is not None:
            self._sessions[request.tenant, job.session] += 1
        now, digest = job.arrival, request.digest()
        cost = None if request.unpriced is None else job.cost
        start = found.promised, found.expected
        accepted = Accepted(job.sequence, found.position, now, *start, job.expires or 0, cost=cost)
        if request.key is not None and digest is not None:
            again = Accepted(
                job.sequence, 0, now, found.promised, found.promised, job.expires or 0, new=False
            )
            self._keys[request.tenant, request.key] = digest, again  # as its row will say
        return accepted

    async def _save(self) -> None:
        states, saved = list(self._locked.states.values()), self._saved
        await self._connection.execute(
            statement("submit"),
            [state.name for state in states],
            [rows.write_numbers(state.work) for state in states],
            [state.waiting for state in states],
            [state.due for state in states],
            [rows.write_echoes(state.echoes) for state in states],
            self._locked.sooner(),
            [job.sequence for _, job, _ in saved],
            [request.tenant for request, _, _ in saved],
            [None if outside else _place(job) for _, job, outside in saved],
            [job.arrival for _, job, _ in saved],
            [job.promised for _, job, _ in saved],
            [job.head_start for _, job, _ in saved],
            [job.expires for _, job, _ in saved],
            [request.policy.max_wait_ns for request, _, _ in saved],
            [job.cost.requests for _, job, _ in saved],
            [job.cost.input_tokens for _, job, _ in saved],
            [job.cost.output_tokens for _, job, _ in saved],
            [request.session for request, _, _ in saved],
            [request.key for request, _, _ in saved],
            [request.digest() for request, _, _ in saved],
            [request.prompt for request, _, _ in saved],
            [request.home for request, _, _ in saved],
            [_lease(request, job) for request, job, _ in saved],
            [None if job.holder is None else job.holder.sequence for _, job, _ in saved],
            [None if job.holder is None else job.holder.calls for _, job, _ in saved],
            [job.gate or None for _, job, _ in saved],
            [rows.write_ladder(request.policy, request.most_deferred) for request, _, _ in saved],
            [job.rung for _, job, _ in saved],
            [job.predicted for _, job, _ in saved],
            [job.model for _, job, _ in saved],
            [job.max_tokens for _, job, _ in saved],
            [None if job.deferred else look_at(job, job.arrival) for _, job, _ in saved],
            [job.deferred for _, job, _ in saved],
            [estimating.counted_of(request.unpriced) for request, _, _ in saved],
            [self._tightest.get(state.name) for state in states],
        )
        await self._locked.save_gates(self._connection)


def gate_for(gates: Mapping[str, SharedGate], name: str | None) -> SharedGate | None:
    """The gate that a request is for: the one it names, or the only one. Raises ValueError."""
    if name is None and len(gates) < 2:
        return next(iter(gates.values()), None)
    if name is None or name not in gates:
        raise ValueError(f"gate: must be one of {sorted(gates)}, got {name!r}")
    return gates[name]


def _lease(request: Request, job: StoredJob) -> int | None:
    if job.deferred:
        return FAR if job.expires is None else job.expires
    return None if request.home is None else job.arrival + request.lease


def _place(job: StoredJob) -> int:
    """Where a job stands in its line: a continuation at the place of its run."""
    return job.arrival - job.head_start if job.holder is None else job.holder.arrival
