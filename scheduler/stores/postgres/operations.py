"""What a person asks of a store: which jobs there are, and to try one again."""

from __future__ import annotations

from asyncpg import Connection, Record

from scheduler.core import ledger
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.settlement import Settlement
from scheduler.stores.postgres.statements import statement


async def list_jobs(
    connection: Connection, tenant: str | None, state: int | None, job: int | None, most: int
) -> list[Record]:
    """The newest jobs first."""
    return list(await connection.fetch(statement("list_jobs"), tenant, state, job, most))


async def revive(connection: Connection, job: int) -> bool:
    """Let a job that failed or was cancelled wait again. False if there is no such job.

    Raises ValueError if its gate was dropped.
    """
    tenant = await connection.fetchval("select tenant from waitline.job where id = $1", job)
    if tenant is None:
        return False
    locked = await Locked.these(connection, [tenant])
    row = await connection.fetchrow(statement("ended_job"), job)
    if row is None:
        return False
    if row["gate"] and row["gate"] not in locked.gates:
        raise ValueError(f"job: {job} waits for the gate {row['gate']!r}, which is not there any more")
    state = locked.states[tenant]
    now = await locked.time(connection)
    parked = False
    if row["session"] is not None:
        (found,) = await connection.fetch(statement("sessions"), [tenant], [row["session"]])
        parked = found["jobs"] > 0
    state.waiting += 1
    gate = locked.gate_of(row["gate"])
    if gate is not None:
        gate.join(state, now, first=False)
    ledger.move(state, now)
    if not parked:
        cost = rows.reserved_of(row) or rows.cost_of(*row["cost"])
        locked.enter(state, row["gate"], cost, paid=False, now=now)
    await connection.execute(
        statement("revive"),
        tenant,
        rows.write_numbers(state.work),
        state.waiting,
        state.as_of,
        state.due,
        locked.sooner(),
        job,
        parked,
    )
    await locked.save_gates(connection)
    locked.worsen(tenant)
    await Settlement(locked, now).judge(connection)
    return True
