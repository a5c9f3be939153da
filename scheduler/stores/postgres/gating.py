"""Claim at shared gates: all of them are locked, and the core grants in the fair order between tenants."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from asyncpg import Connection

from scheduler.core import stage
from scheduler.core.stored import StoredJob
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.claiming import AHEAD, CALLERS, JOBS, Claimed, save, tell
from scheduler.stores.postgres.locked import Locked

LINES = 200
"""Lines of which something is due in one transaction."""


async def claim(connection: Connection, worker: str, slots: int, about: int, lease: int) -> Claimed | None:
    """Grant at most `slots` jobs, and callers that can pass. None if nothing was due `about` now."""
    text = await connection.fetchval(
        "select waitline.gate_lines($1, $2, $3, $4, $5)", about + AHEAD, slots, CALLERS, LINES, JOBS
    )
    if text is None:
        return None
    found = json.loads(text)
    tenants = found["tenants"] or []
    locked = Locked(map(rows.read_tenant, tenants), rows.read_gates(json.dumps(found["gates"])))
    jobs = [_read(row) for row in found["jobs"] or []]
    back = [job for job in jobs if job.parked]
    for job in back:  # their backoff is over: they are in line from here on
        gate = locked.gates[job.gate]
        gate.count(job.cost, 1)
        if not job.paid:
            locked.states[job.tenant].add_work(job.cost, 1)
    now = locked.not_before(found["now"])
    end = now if found["latest"] is None else min(now, found["latest"])
    for gate in locked.gates.values():
        gate.left = CALLERS
    moved = stage.claim(locked.gates, locked.states, jobs, slots, end, _partial(jobs, found["each"]))
    _come_back(locked, tenants)
    claimed = await save(connection, locked, moved, back, worker, now, lease)
    await tell(connection, moved, worker)
    first = locked.first_due()
    return claimed._replace(more=found["latest"] is not None or (first is not None and first <= now))


def _read(row: Mapping[str, Any]) -> StoredJob:
    job = rows.read_job(row)
    job.climbs = row["climbs"]
    if row["returns"] is not None:
        job.since = row["returns"]
        job.parked = row["place"] is None
    return job


def _partial(jobs: Sequence[StoredJob], each: int) -> Collection[tuple[str, str]]:
    """The lines that go on behind their last loaded job."""
    loaded = Counter((job.tenant, job.gate) for job in jobs if job.holder is None and not job.parked)
    return {name for name, number in loaded.items() if number >= each}


def _come_back(locked: Locked, tenants: Sequence[Mapping[str, Any]]) -> None:
    """Something is due when the next backoff ends."""
    for row in tenants:
        for gate, time in (row["returns"] or {}).items():
            line = locked.states[row["tenant"]].lines[gate]
            if time is not None and line.waiting:
                line.due_by(time)
