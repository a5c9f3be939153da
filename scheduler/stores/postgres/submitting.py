"""Submit: a batch of jobs is judged under the locks of their tenants, and what is accepted is committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncpg import Connection

from scheduler.core import ledger, sharing
from scheduler.core.policy import Outlook
from scheduler.core.shared import SharedGate
from scheduler.core.signals import News
from scheduler.core.stored import StoredJob, TenantState
from scheduler.stores.postgres import estimating, rows
from scheduler.stores.postgres.gates import look
from scheduler.stores.postgres.heads import see_heads
from scheduler.stores.postgres.judging import Answer, Batch, gate_for
from scheduler.stores.postgres.locked import Locked, configured
from scheduler.stores.postgres.opened import Quotas
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import Request, Uncounted


def _gate_or_none(gates: Mapping[str, SharedGate], name: str | None) -> SharedGate | None:
    """The gate that a request is for, or none: that it names no good one is answered by its judgement."""
    try:
        return gate_for(gates, name)
    except ValueError:
        return None


async def submit(
    connection: Connection,
    requests: Sequence[Request],
    quotas: Quotas | None = None,
    news: list[News] | None = None,
) -> list[Answer]:
    """Judge requests in the order in which they came. Refused ones are answered with their exception.

    `quotas`: where to note what the tenants' are. `news`: where to note what their ladders did.
    """
    locked = await Locked.made(connection, {request.tenant: request.quota for request in requests})
    if quotas is not None:
        for state in locked.states.values():
            quotas.see(state.name, state.quota)
    asked = await estimating.priced(
        connection, [(r, locked.states[r.tenant], _gate_or_none(locked.gates, r.gate)) for r in requests]
    )
    batch = Batch(connection, [request for request in asked if isinstance(request, Request)], locked)
    judged = iter(await batch.judge())
    if news is not None:
        news += batch.news
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
