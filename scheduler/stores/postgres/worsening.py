"""Worsening: jobs whose wait got worse are judged again, by those who made it worse.

Each tenant's row says until when the first of those who wait has to start, or earlier. With the sum of the
work in line that is one comparison, and a line is walked over only where somebody may not start by then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from asyncpg import Connection, Record

from scheduler.core.entry import REFUSED, WAITING
from scheduler.core.gate import Gate
from scheduler.core.outlook import too_long
from scheduler.core.quota import Quota
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.statements import statement


class Walked(NamedTuple):
    """What a walk over the lines of some tenants found.

    `late`: who may not wait for so long, and when it would start. `climbs`: who may not either, but has a
    ladder that is to be looked at before. `again`: of whom somebody else may come in now.
    """

    late: list[tuple[Record, int]]
    climbs: list[int]
    again: set[str]


async def doubtful(connection: Connection, locked: Locked, now: int) -> list[str]:
    """The tenants whose waits got worse where somebody may wait for too long now."""
    found = await connection.fetch(statement("tightest"), sorted(locked.worse))
    locked.worse.clear()
    return [row["name"] for row in found if _last(locked, row["name"], now) > row["tightest"]]


def _last(locked: Locked, name: str, now: int) -> int:
    """By when all in line have started, by the tenant's own buckets and pauses."""
    state = locked.states[name]
    gates = [locked.gates[line.gate] for line in state.lines.values() if line.waiting]
    begin = max([now, *(gate.opens for gate in gates if gate.closed_until is None)])
    return state.tenant().surely(state.work, begin)


async def walk(
    connection: Connection,
    locked: Locked,
    names: Sequence[str],
    now: int,
    looked: Collection[int],
    gate: str | None,
) -> Walked:
    """Judge those who wait again, of some tenants, by the rules of the engine; at one gate, if it is given.

    `looked`: jobs whose ladders were looked at just now.
    """
    lines: dict[str, list[Record]] = defaultdict(list)
    for row in await connection.fetch(statement("waiting_lines"), names):
        lines[row["tenant"]].append(row)
    walked = Walked([], [], set())
    for name, line in lines.items():
        _judge(locked, name, line, now, looked, gate, walked)
    if walked.climbs:
        await connection.execute(statement("look_first"), walked.climbs)
    return walked


def _judge(  # noqa: PLR0917 - what one walk knows
    locked: Locked,
    name: str,
    line: Sequence[Record],
    now: int,
    looked: Collection[int],
    only: str | None,
    walked: Walked,
) -> None:
    """Judge those in the line of a tenant, up to the first of whom it depends who stands there next."""
    tenant, none, jobs = locked.states[name].tenant(), Gate("", Quota(), now), []
    for row in line:
        job = rows.read_job(row)
        job.state, job.slot, job.shared = WAITING, row["slot"] or 0, locked.gates.get(job.gate, none)
        jobs.append(job)
    found = {row["id"]: row for row in line}
    for gate in dict.fromkeys(job.shared for job in jobs):
        if gate.closed_until is not None or only not in {None, gate.name}:
            continue  # at a closed gate everybody is refused, and told why
        for job, start in too_long(tenant, gate, now, jobs):
            number = job.sequence
            if job.policy.ladder and number not in looked:
                walked.climbs.append(number)
                return
            job.state = REFUSED
            walked.late.append((found[number], start))
            if job.session is not None:
                walked.again.add(name)
                return
