"""Claim: tenants of which something is due are locked, the core grants over the first jobs of their lines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from asyncpg import Connection, Record

from scheduler.core import ledger
from scheduler.core.entry import RUNNING
from scheduler.core.policy import Cause, Overload
from scheduler.core.stored import StoredJob
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.dues import Blocked
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.reaching import reaches, read_overload
from scheduler.stores.postgres.reasons import kind_of, why
from scheduler.stores.postgres.settlement import Settlement, announce, unpark
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import Claim, Plan

DUE = "select * from waitline.due_lines($1, $2, $3, $4, $5)"

TENANTS = 100
"""Tenants in one transaction."""

JOBS = 400
"""Jobs of one line in one transaction."""


AHEAD = 2_000_000
"""Nanoseconds by which a claim looks ahead for tenants: what a guess of the time may lag behind."""


CALLERS = 50
"""Callers and jobs of one line in one transaction of a process that runs no jobs."""


TOLD = 150
"""Grants in one notification: a payload holds 8,000 bytes."""


class Claimed(NamedTuple):
    """What a claim found: jobs in the order of their slots, and whether there may be more.

    `callers`: (id, slot) of those of the claiming process that run their own work. `moved`: whether any line
    is another one than before. `blocked`: tenants whose callers wait although something is due.
    `following`: when something is due next, of whatever tenant, if that was asked too.
    """

    claims: list[Claim]
    more: bool
    callers: Sequence[tuple[int, int]] = ()
    moved: bool = True
    blocked: Mapping[str, Blocked] = {}
    following: tuple[int | None] | None = None

    def beside(self, other: Claimed | None) -> Claimed:
        """What two claims found in one transaction."""
        if other is None:
            return self
        callers, moved = [*self.callers, *other.callers], self.moved or other.moved
        return self._replace(
            claims=[*self.claims, *other.claims], more=self.more or other.more, callers=callers, moved=moved
        )


async def claim(
    connection: Connection, worker: str, slots: int, about: int, lease: int, gates: str | None = None
) -> Claimed | None:
    """Grant at most `slots` jobs for `lease` nanoseconds. None if nothing was due `about` now.

    `gates`: those that are locked, as JSON; others of a session may have to pass one.
    """
    found = await connection.fetch(DUE, about + AHEAD, None, min(slots, TENANTS), slots, JOBS)
    if not found:
        return None
    locked = await _locked(connection, found, gates)
    return await _decide(connection, found, locked, worker, slots, JOBS, lease)


async def claim_callers(
    connection: Connection,
    home: str,
    tenants: Sequence[str],
    about: int,
    lease: int,
    gates: str | None = None,
) -> Claimed | None:
    """Grant callers of some tenants that run their own work, wherever they do. None if nothing was due.

    A job is not passed: whoever stands behind one that is due waits until a worker has taken it.
    """
    found = await connection.fetch(DUE, about + AHEAD, tenants, TENANTS, TENANTS * CALLERS, CALLERS)
    if not found:
        return None
    locked = await _locked(connection, found, gates)
    return await _decide(connection, found, locked, home, 0, CALLERS, lease)


async def lock_gates(connection: Connection) -> str | None:
    """Lock all gates, which comes before tenants; their rows, as JSON."""
    (row,) = await connection.fetch(statement("lock_tenants"), [])
    text: str | None = row["gates"]
    return text


async def _locked(connection: Connection, found: Sequence[Record], gates: str | None) -> Locked:
    locked = Locked((rows.read_tenant(row) for row in found if row["id"] is None), rows.read_gates(gates))
    if locked.gates:
        await locked.add_lines(connection)
    return locked


async def _decide(  # noqa: PLR0917 - what one transaction knows
    connection: Connection,
    found: Sequence[Record],
    locked: Locked,
    worker: str,
    slots: int,
    longest: int,
    lease: int,
) -> Claimed:
    """Let the core grant over the first jobs of the lines of locked tenants, and save that."""
    heads = [row for row in found if row["id"] is None]
    states, most = list(locked.states.values()), heads[0]["most"]
    now, overload = await locked.moment(connection, heads[0]["now"]), read_overload(heads[0])
    read = [(row, rows.read_job(row)) for row in found[len(heads) :]]
    jobs, back = _sort(read, most, longest, overload)
    for job in back:  # their backoff is over: they are in line from here on
        if not job.paid:
            locked.states[job.tenant].add_work(job.cost, 1)
    loaded = Counter(job.tenant for job in jobs if job.holder is None)
    reached = {}
    if overload is not None:
        known = reaches(read, most, heads[0]["beyond"], overload, heads[0]["now"])
        reached = {t: reach for (t, _), reach in known.items() if loaded[t] < locked.states[t].waiting}
    whole = frozenset(s.name for s in states if loaded[s.name] < most or loaded[s.name] == s.waiting)
    moved = ledger.grant(states, jobs, slots, now, whole - reached.keys(), overload, reached)
    for row in heads:
        if row["next_return"] is not None:
            locked.states[row["tenant"]].due_by(row["next_return"])
    claimed = await save(connection, locked, moved, back, worker, now, lease, overload)
    with_callers = {row["tenant"] for row in heads if row["homes"]}
    if with_callers:
        await tell(connection, moved, worker)
        await _tell_of_lines(connection, locked, with_callers & {job.tenant for job in moved})
    more = any(state.due is not None and state.due <= now for state in states) or len(states) >= TENANTS
    blocked = {
        state.name: Blocked(state.due, state.as_of, state.again)
        for state in states
        if state.again is not None and state.name in with_callers
    }
    return claimed._replace(more=more, blocked=blocked)


async def save(  # noqa: PLR0917 - what one transaction knows
    connection: Connection,
    locked: Locked,
    moved: Sequence[StoredJob],
    back: Sequence[StoredJob],
    worker: str,
    now: int,
    lease: int,
    overload: Overload | None,
) -> Claimed:
    """Save what was decided: jobs that were granted or are gone, and those `back` from their backoff."""
    granted = [job for job in moved if job.state is RUNNING]
    gone = [job for job in moved if job.state is not RUNNING]
    waiting = {job.sequence for job in back} - {job.sequence for job in moved}
    left = {(job.tenant, job.session): job.since for job in gone if job.session is not None}
    waiting.update(await unpark(connection, locked, left, [job.sequence for job in gone]))
    saved = await connection.fetch(
        statement("grant"),
        *locked.columns(),
        [job.sequence for job in granted],
        [job.slot for job in granted],
        worker,
        [job.sequence for job in gone],
        [kind_of(job) for job in gone],
        [why(job) for job in gone],
        now,
        lease,
        sorted(waiting),
        [job.period if job.gate else 0 for job in granted],
        [state.late for state in locked.states.values()],
        [Cause.OVERLOAD_ORDER in job.delayed for job in granted],
        overload is not None,
    )
    await locked.save_gates(connection)
    await announce(connection, [job.sequence for job in gone])
    for job in back:
        locked.worsen(job.tenant)
    await Settlement(locked, now).judge(connection)
    ours = [(job.sequence, job.slot) for job in granted if job.home == worker]
    jobs = [job for job in granted if job.home is None]
    return Claimed(_claims(jobs, saved, now + lease), False, ours, bool(moved or waiting))


async def tell(connection: Connection, moved: Sequence[StoredJob], worker: str) -> None:
    """Tell callers elsewhere that they were granted."""
    granted = [job for job in moved if job.state is RUNNING and job.home not in {None, worker}]
    told = [f"{job.sequence} {job.slot}" for job in granted]
    for at in range(0, len(told), TOLD):
        await connection.execute("select pg_notify('waitline_granted', $1)", " ".join(told[at : at + TOLD]))


async def _tell_of_lines(connection: Connection, locked: Locked, moved: Collection[str]) -> None:
    """Tell everybody when lines with callers go on.

    The one who claimed may have nobody left in such a line, and whoever is first in it now need not be a
    worker's: so everybody looks again.
    """
    due = [state.due for state in locked.states.values() if state.name in moved and state.due is not None]
    if due:
        await connection.execute("select pg_notify('waitline_due', $1)", str(min(due)))


def _sort(
    read: Sequence[tuple[Record, StoredJob]], most: int, longest: int, overload: Overload | None
) -> tuple[list[StoredJob], list[StoredJob]]:
    """The jobs to grant from, and all whose backoff is over.

    Where a line goes on behind the `most` of it that were loaded, nobody may pass who stands there, nor
    behind the `longest` that came back; continuations may, now and then, which is for the core to say, and
    all of it is where an order was declared for lines that are late.
    """
    jobs, continuations = [], []
    back: list[StoredJob] = []
    lines: dict[str, list[StoredJob]] = defaultdict(list)
    for row, job in read:
        if row["holder"] is not None:
            continuations.append(job)
            continue
        jobs.append(job)
        if row["returns"] is not None:
            job.since = row["returns"]
            job.parked = row["place"] is None
        (back if row["place"] is None else lines[job.tenant]).append(job)
    if overload is not None:
        return jobs + continuations, back
    last = {tenant: line[-1].key for tenant, line in lines.items() if len(line) >= most}
    for tenant, count in Counter(job.tenant for job in back).items():
        if count >= longest:
            end = max(job.key for job in back if job.tenant == tenant)
            last[tenant] = min(end, last.get(tenant, end))
    jobs = [job for job in jobs if job.tenant not in last or job.key <= last[job.tenant]]
    return jobs + continuations, back


def plan_of(row: Record) -> Plan | None:
    """How a granted job is served, if that is another way than the usual; a dark ladder only tells."""
    if row["ladder"] is None or not row["rung"] or rows.read_ladder(row["ladder"], None)[0].dark:
        return None
    return Plan(row["rung"], row["predicted"], row["model"], row["max_tokens"], row.get("deferred") or False)


def _claims(granted: Sequence[StoredJob], saved: Sequence[Record], lease: int) -> list[Claim]:
    by_id = {row["id"]: row for row in saved}
    return [
        Claim(
            id=job.sequence,
            tenant=job.tenant,
            prompt=by_id[job.sequence]["prompt"],
            session=job.session,
            cost=job.cost,
            attempt=by_id[job.sequence]["attempt"],
            tries=by_id[job.sequence]["tries"],
            arrival=job.arrival,
            promised=job.promised,
            slot=job.slot,
            deadline=job.expires,
            lease=lease,
            gate=job.gate,
            plan=plan_of(by_id[job.sequence]),
        )
        for job in granted
    ]
