"""Those who wait are looked at: by their ladders when it is time, and all of a gate when it closes."""

from __future__ import annotations

import json
from collections.abc import Sequence

from asyncpg import Connection, Record

from scheduler.core.policy import Reason
from scheduler.core.signals import News
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.ladders import step_aside
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.settlement import Settlement
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import FAILED

MOST = 200
"""Jobs in one transaction."""

TENANTS = 50
"""Tenants in one transaction, each with all jobs of its line at most."""


async def look(connection: Connection, about: int) -> tuple[int, list[News]]:
    """Look at jobs that have waited for as long as a rung says; how many that were, and their news."""
    found = await connection.fetch(statement("looked_at"), about, MOST)
    return len(found), await _decide(connection, found)


async def refuse(connection: Connection, gate: str, after: int) -> tuple[int | None, list[News]]:
    """Let go, or refuse, those who wait for a gate that was closed, from a number on; where to go on.

    Whoever is left, should this process die, is refused when a claim comes to its line.
    """
    found = await connection.fetch(statement("waiting_at"), gate, MOST, after)
    news = await _decide(connection, found)
    return (found[-1]["id"] if len(found) == MOST else None), news


async def judge(connection: Connection, gate: str, after: str) -> str | None:
    """Judge those again who wait for a gate that was paused, of the tenants after a name; where to go on."""
    found = await connection.fetch(statement("bounded_at"), gate, after, TENANTS)
    if not found:
        return None
    locked = await Locked.these(connection, [row["tenant"] for row in found])
    for name in locked.states:
        locked.worsen(name)
    await Settlement(locked, await locked.time(connection)).judge(connection, gate)
    return found[-1]["tenant"] if len(found) == TENANTS else None


async def _decide(connection: Connection, found: Sequence[Record]) -> list[News]:
    """Let jobs take rungs that help, and refuse those who are left at a closed gate, by and by."""
    if not found:
        return []
    locked = await Locked.these(connection, {row["tenant"] for row in found})
    settlement = Settlement(locked, await locked.time(connection))
    # Those that would be refused but for their ladders.
    settlement.looked = {row["id"] for row in found if row.get("look") == 0}
    jobs = [row["id"] for row in found]
    before = {row["id"]: row["gate"] for row in await connection.fetch(statement("waiting"), jobs)}
    aside, news = await step_aside(connection, locked, jobs, settlement.now)
    for row in await connection.fetch(statement("waiting"), [job for job in jobs if job not in aside]):
        refusal = _refusal(locked, row, settlement.now)
        if refusal is not None:
            settlement.withdraw(row, FAILED, *refusal)
    for row in found:
        if row["id"] in settlement.looked:
            locked.worsen(row["tenant"])
    await settlement.save(connection)
    paused = {before[job] for job in aside if locked.gates[before[job]].paused_until > settlement.now}
    if paused:  # whoever is at the front of these lines now
        await connection.execute(statement("look_now"), sorted(paused), settlement.now, list(locked.states))
    return news


def _refusal(locked: Locked, row: Record, now: int) -> tuple[str, int, str] | None:
    """Why a job waits in vain where it does: the kind of its failure, since when, and what it is told."""
    gate, cost = locked.gates[row["gate"]], rows.cost_of(*row["cost"])
    never = locked.states[row["tenant"]].shape.never(cost) or gate.shape.never(cost)
    if never is not None:
        return str(Reason.NEVER), now, json.dumps(never)
    if gate.closed_until is None or row["id"] == gate.probe_id:
        return None
    return str(Reason.SPEND_LIMIT), now, str(gate.wait_of_refused(gate.opens, now))
