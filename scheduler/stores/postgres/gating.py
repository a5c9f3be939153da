"""Claim at shared gates: all of them are locked, and the core grants in the fair order between tenants."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from asyncpg import Connection

from scheduler.core import passage
from scheduler.core.stored import StoredJob
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.claiming import AHEAD, CALLERS, JOBS, Claimed, save, tell
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.reaching import reaches, read_overload

LINES = 200
"""Lines of which something is due in one transaction."""

HEADS = 64
"""Jobs that stand at a gate and are granted in one transaction; there are more after that."""


async def claim(connection: Connection, worker: str, slots: int, about: int, lease: int) -> Claimed | None:
    """Grant at most `slots` jobs, and callers that can pass. None if nothing was due `about` now."""
    text = await connection.fetchval(
        "select waitline.gate_lines($1, $2, $3, $4, $5)",
        about + AHEAD,
        min(slots, HEADS),
        CALLERS,
        LINES,
        JOBS,
    )
    if text is None:
        return None
    found = json.loads(text)
    tenants = found["tenants"] or []
    locked = Locked(map(rows.read_tenant, tenants), rows.read_gates(json.dumps(found["gates"])))
    overload, read = read_overload(found), [(row, _read(row)) for row in found["jobs"] or []]
    jobs = [job for _, job in read]
    back = [job for job in jobs if job.parked]
    for job in back:  # their backoff is over: they are in line from here on
        gate = locked.gates[job.gate]
        gate.count(job.cost, 1)
        if not job.paid:
            locked.states[job.tenant].add_work(job.cost, 1)
    now = await locked.moment(connection, found["now"])
    end = now if found["latest"] is None else min(now, found["latest"])
    _limit(locked, min(slots, HEADS), now)
    reached = reaches(read, found["each"], found["beyond"], overload, found["now"])
    moved = passage.claim(locked.gates, locked.states, jobs, slots, end, reached, overload)
    _come_back(locked, tenants)
    sooner = locked.sooner()
    claimed = await save(connection, locked, moved, back, worker, now, lease, overload)
    await tell(connection, moved, worker)
    if sooner is not None:
        await connection.execute("select pg_notify('waitline_due', $1)", sooner)
    first = locked.first_due()
    return claimed._replace(more=found["latest"] is not None or (first is not None and first <= now))


def _read(row: Mapping[str, Any]) -> StoredJob:
    job = rows.read_job(row)
    job.climbs = row["climbs"]
    if row["returns"] is not None:
        job.since = row["returns"]
        job.parked = row["place"] is None
    return job


def _limit(locked: Locked, slots: int, now: int) -> None:
    """Tell gates up to which turn all are here who stand there: so many that need a worker, and of others."""
    stand: dict[tuple[str, bool], list[tuple[int, int]]] = defaultdict(list)
    for state in locked.states.values():
        for line in state.lines.values():
            if line.start is not None and line.front is not None:
                stand[line.gate, line.calls].append((line.start, line.front))
    for name, gate in locked.gates.items():
        limits = [sorted(stand[name, True])[CALLERS]] if len(stand[name, True]) > CALLERS else []
        if len(stand[name, False]) > slots and not passage.is_crowded(gate, slots, now):
            limits.append(sorted(stand[name, False])[slots])
        gate.limit = min(limits, default=None)


def _come_back(locked: Locked, tenants: Sequence[Mapping[str, Any]]) -> None:
    """Something is due when the next backoff ends."""
    for row in tenants:
        for gate, time in (row["returns"] or {}).items():
            line = locked.states[row["tenant"]].lines[gate]
            if time is not None and line.waiting:
                line.due_by(time)
