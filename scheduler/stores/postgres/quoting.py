"""Looking ahead without a lock: what a request could look forward to, and what a job can that waits."""

from __future__ import annotations

from asyncpg import Connection

from scheduler.core import ledger, sharing
from scheduler.core.entry import WAITING as IN_LINE
from scheduler.core.policy import Outlook
from scheduler.core.rungs import Rungs
from scheduler.core.stored import StoredJob, TenantState
from scheduler.stores.postgres import estimating, rows
from scheduler.stores.postgres.claiming import plan_of
from scheduler.stores.postgres.gates import look
from scheduler.stores.postgres.heads import see_heads
from scheduler.stores.postgres.judging import gate_for
from scheduler.stores.postgres.locked import configured
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import WAITING, Known, Request, Uncounted


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
    gates = await look(connection)
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


async def see(connection: Connection, job: int, tenant: str) -> Known | None:
    """How a job stands; None if the tenant has none of that number."""
    row = await connection.fetchrow(statement("look"), job, tenant)
    if row is None:
        return None
    outlook = await _expected(connection, tenant, job) if row["state"] == WAITING else None
    served = row["slot"], row["gate"] or "", rows.cost_of(*row["cost"]), plan_of(row), row["overtaken"]
    known = Known._make([*tuple(row)[:7], *served])
    return known if outlook is None else known._replace(position=outlook.position, expected=outlook.expected)


async def _expected(connection: Connection, tenant: str, number: int) -> Outlook | None:
    """What a job in line can look forward to now; None if it stands in no line.

    The formula is the engine's, over the tenant's line and who stands at its gate.
    """
    row = await connection.fetchrow(statement("see_tenant"), tenant)
    if row is None:
        return None
    state, gates = rows.read_tenant(row), await look(connection)
    now = max(row["now"], state.as_of)
    line = [rows.read_job(row) for row in await connection.fetch(statement("waiting_lines"), [tenant])]
    found = next((job for job in line if job.sequence == number), None)
    if found is None:
        return None
    for job in line:
        job.state = IN_LINE
    await see_heads(connection, gates, now)
    return Rungs(now, gates, state, line).outlook(found, now)
