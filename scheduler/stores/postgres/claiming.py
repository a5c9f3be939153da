"""Claim: tenants of which something is due are locked, the core grants over the first jobs of their lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from asyncpg import Connection, Record

from scheduler.core import ledger
from scheduler.core.entry import EXPIRED, RUNNING
from scheduler.core.stored import StoredJob
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.settling import announce, kind_of, unpark, why
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import Claim

TENANTS = 100
"""Tenants in one transaction."""

JOBS = 200
"""Jobs of one line in one transaction."""


AHEAD = 2_000_000
"""Nanoseconds by which a claim looks ahead for tenants: what a guess of the time may lag behind."""


class Claimed(NamedTuple):
    """What a claim found: jobs in the order of their slots, whether there may be more, and the time."""

    claims: list[Claim]
    more: bool
    now: int


async def claim(connection: Connection, worker: str, slots: int, about: int, lease: int) -> Claimed | None:
    """Grant at most `slots` jobs for `lease` nanoseconds. None if nothing was due `about` now."""
    found = await connection.fetch(statement("due_tenants"), about + AHEAD, min(slots, TENANTS))
    if not found:
        return None
    locked = Locked(map(rows.read_tenant, found))
    states = list(locked.states.values())
    most = min(JOBS, max(1, 2 * slots // len(states)))
    heads = await connection.fetch(statement("heads"), list(locked.states), most)
    now = locked.not_before(heads[0]["now"])
    jobs, back = _read(heads)
    for job in back:  # their backoff is over: they are in line from here on
        if not job.paid:
            locked.states[job.tenant].add_work(job.cost, 1)
    loaded = Counter(job.tenant for job in jobs)
    whole = frozenset(name for name in locked.states if loaded[name] < most)
    moved = ledger.grant(states, jobs, slots, now, whole)
    for row in heads:
        if row["next_return"] is not None:
            locked.states[row["tenant"]].due_by(row["next_return"])
    granted = [job for job in moved if job.state is RUNNING]
    gone = [job for job in moved if job.state is not RUNNING]
    waiting = {job.number for job in back} - {job.number for job in moved}
    left = {(job.tenant, job.session): _left(job, now) for job in gone if job.session is not None}
    waiting.update(await unpark(connection, locked, left, [job.number for job in gone]))
    saved = await connection.fetch(
        statement("grant"),
        *locked.columns(),
        [job.number for job in granted],
        [job.slot for job in granted],
        worker,
        [job.number for job in gone],
        [kind_of(job) for job in gone],
        [why(job) for job in gone],
        now,
        lease,
        sorted(waiting),
    )
    await announce(connection, [job.number for job in gone])
    more = any(state.due is not None and state.due <= now for state in states) or len(states) >= TENANTS
    return Claimed(_claims(granted, saved, now + lease), more, now)


def _read(heads: Sequence[Record]) -> tuple[list[StoredJob], list[StoredJob]]:
    """All jobs that were loaded, and among them those whose backoff is over."""
    jobs, back = [], []
    for row in heads:
        if row["id"] is None:
            continue
        job = rows.read_job(row)
        jobs.append(job)
        if row["returns"] is not None:
            job.since = row["returns"]
            back.append(job)
    return jobs, back


def _left(job: StoredJob, now: int) -> int:
    """When a job gave up its place."""
    return job.expires if job.state is EXPIRED and job.expires is not None else now


def _claims(granted: Sequence[StoredJob], saved: Sequence[Record], lease: int) -> list[Claim]:
    by_id = {row["id"]: row for row in saved}
    return [
        Claim(
            id=job.number,
            tenant=job.tenant,
            prompt=by_id[job.number]["prompt"],
            session=job.session,
            cost=job.cost,
            attempt=by_id[job.number]["attempt"],
            tries=by_id[job.number]["tries"],
            arrival=job.arrival,
            promised=job.promised,
            slot=job.slot,
            deadline=job.expires,
            lease=lease,
        )
        for job in granted
    ]
