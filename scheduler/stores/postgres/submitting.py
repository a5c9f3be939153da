"""Submit: a batch of jobs is judged under the locks of their tenants, and what is accepted is committed."""

from __future__ import annotations

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter

from asyncpg import Connection

from scheduler.core import ledger, sharing
from scheduler.core.gate import COUNTED
from scheduler.core.policy import Outlook
from scheduler.core.shared import SharedGate
from scheduler.core.stored import StoredJob, TenantState
from scheduler.errors import refused
from scheduler.stores.postgres import estimating, rows
from scheduler.stores.postgres.locked import Locked, configured
from scheduler.stores.postgres.opened import Quotas
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import Accepted, Request, Uncounted

_key = attrgetter("key")

Answer = Accepted | Exception
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

    async def judge(self) -> list[Answer]:
        """Accept or refuse each, and save what was accepted and what changed."""
        await self._look_up()
        (clock,) = await self._connection.fetch(statement("numbers"), len(self._requests))
        now, numbers = self._locked.not_before(clock["now"]), iter(clock["numbers"])
        await self._load_lines(now)
        await see_heads(self._connection, self._locked.gates, now)
        answers = [self._one(request, now, numbers) for request in self._requests]
        await self._save()
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
            if ledger.needs_line(states[r.tenant], self._asked(r, 0, now), coming, now)
        }
        if walked:
            for row in await self._connection.fetch(statement("waiting_lines"), sorted(walked)):
                self._lines[row["tenant"]].append(rows.read_job(row))

    def _gate_of(self, request: Request) -> SharedGate | None:
        return gate_for(self._locked.gates, request.gate)

    def _asked(self, request: Request, number: int, now: int) -> StoredJob:
        """The job of a request: a continuation whose run is over, or lost, stands in line as any caller."""
        place = None if request.holder is None else self._places.get(request.holder.id)
        return _job(request, number, now, place)

    def _one(self, request: Request, now: int, numbers: Iterator[int]) -> Answer:
        known = None if request.key is None else self._keys.get((request.tenant, request.key))
        digest = request.digest()
        if known is not None:
            if known[0] == digest:
                return known[1]
            return ValueError(f"key: {request.key!r} was used before, with another prompt or session")
        try:
            gate = self._gate_of(request)
        except ValueError as error:
            return error
        state, line = self._locked.states[request.tenant], self._lines[request.tenant]
        job = self._asked(request, next(numbers), now)
        session = None if request.session is None else (request.tenant, request.session)
        parked = 0 if session is None else self._sessions[session]
        known_there = line, parked, self._continuations[request.tenant]
        if gate is None:
            found, refusal = ledger.outlook(state, job, now, *known_there)
        else:
            found, refusal = sharing.outlook(state, gate, job, now, *known_there)
        if refusal is not None:
            return refused(request.tenant, refusal)
        cost = None if request.unpriced is None else request.cost
        job.promised = found.promised
        if gate is None:
            ledger.join(state, job, now, outside=parked > 0)
        else:
            sharing.join(state, gate, job, now, outside=parked > 0)
        self._continuations[request.tenant] += job.holder is not None
        if session is not None:
            self._sessions[session] += 1
        if not parked:
            insort(line, job, key=_key)
        self._saved.append((request, job, parked > 0))
        start = found.promised, found.expected
        accepted = Accepted(job.sequence, found.position, now, *start, job.expires or 0, cost=cost)
        if request.key is not None and digest is not None:
            self._keys[request.tenant, request.key] = digest, accepted._replace(new=False)
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
            [request.cost.requests for request, _, _ in saved],
            [request.cost.input_tokens for request, _, _ in saved],
            [request.cost.output_tokens for request, _, _ in saved],
            [request.session for request, _, _ in saved],
            [request.key for request, _, _ in saved],
            [request.digest() for request, _, _ in saved],
            [request.prompt for request, _, _ in saved],
            [request.home for request, _, _ in saved],
            [None if request.home is None else job.arrival + request.lease for request, job, _ in saved],
            [None if job.holder is None else job.holder.sequence for _, job, _ in saved],
            [None if job.holder is None else job.holder.calls for _, job, _ in saved],
            [job.gate or None for _, job, _ in saved],
            [estimating.counted_of(request.unpriced) for request, _, _ in saved],
        )
        await self._locked.save_gates(self._connection)


def gate_for(gates: Mapping[str, SharedGate], name: str | None) -> SharedGate | None:
    """The gate that a request is for: the one it names, or the only one. Raises ValueError."""
    if name is None and len(gates) < 2:
        return next(iter(gates.values()), None)
    if name is None or name not in gates:
        raise ValueError(f"gate: must be one of {sorted(gates)}, got {name!r}")
    return gates[name]


def _gate_or_none(gates: Mapping[str, SharedGate], name: str | None) -> SharedGate | None:
    """The gate that a request is for, or none: that it names no good one is answered by its judgement."""
    try:
        return gate_for(gates, name)
    except ValueError:
        return None


async def see_heads(connection: Connection, gates: Mapping[str, SharedGate], now: int) -> None:
    """Have gates know who stands there."""
    asked = [name for name, gate in gates.items() if gate.lines]
    if not asked:
        return
    for row in await connection.fetch(statement("heads"), asked, now, COUNTED + 1):
        gate = gates[row["name"]]
        gate.stood, gate.coming = row["stood"], row["coming"]
        gate.heads = [
            (int(start), int(front)) for start, front in zip(row["starts"], row["fronts"], strict=True)
        ]


def _place(job: StoredJob) -> int:
    """Where a job stands in its line: a continuation at the place of its run."""
    return job.arrival - job.head_start if job.holder is None else job.holder.arrival


async def submit(
    connection: Connection, requests: Sequence[Request], quotas: Quotas | None = None
) -> list[Answer]:
    """Judge requests in the order in which they came. Refused ones are answered with their exception.

    `quotas`: where to note what the tenants' are.
    """
    locked = await Locked.made(connection, {request.tenant: request.quota for request in requests})
    if quotas is not None:
        for state in locked.states.values():
            quotas.see(state.name, state.quota)
    asked = await estimating.priced(
        connection, [(r, locked.states[r.tenant], _gate_or_none(locked.gates, r.gate)) for r in requests]
    )
    judged = iter(await Batch(connection, [r for r in asked if isinstance(r, Request)], locked).judge())
    return [each if isinstance(each, Uncounted) else next(judged) for each in asked]


async def quote(connection: Connection, request: Request) -> tuple[Outlook, int]:
    """What a request could look forward to now, and the time."""
    row = await connection.fetchrow(statement("see_tenant"), request.tenant)
    if row is None:
        now = await connection.fetchval("select waitline.now_ns()")
        given = await configured(connection, [request.tenant])
        state = TenantState.new(request.tenant, given.get(request.tenant, request.quota), now)
    else:
        state = rows.read_tenant(row)
        now = max(row["now"], state.as_of)
    found = await connection.fetch(statement("waiting_lines"), [request.tenant]) if state.waiting else []
    line = [rows.read_job(row) for row in found]
    state.echoes = {}
    rows_of_gates = await connection.fetchval("select json_agg(g)::text from waitline.gate as g")
    gates = {gate.name: gate for gate in rows.read_gates(rows_of_gates)}
    gate = gate_for(gates, request.gate)
    (priced,) = await estimating.priced(connection, [(request, state, gate)])
    if isinstance(priced, Uncounted):
        raise priced
    job = StoredJob(request.tenant, 1 << 39, now, request.policy, priced.cost)
    job.want(head_start=request.head_start)
    if gate is None:
        return ledger.outlook(state, job, now, line)[0], now
    await see_heads(connection, gates, now)
    return sharing.outlook(state, gate, job, now, line)[0], now
