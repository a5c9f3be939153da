"""Submit: a batch of jobs is judged under the locks of their tenants, and what is accepted is committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncpg import Connection

from scheduler.core.shared import SharedGate
from scheduler.core.signals import News
from scheduler.stores.postgres import estimating
from scheduler.stores.postgres.judging import Batch, gate_for
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.opened import Quotas
from scheduler.stores.values import Answer, Request, Uncounted


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
    *,
    together: bool = False,
) -> list[Answer]:
    """Judge requests in the order in which they came. Refused ones are answered with their exception.

    `quotas`: where to note what the tenants' are. `news`: where to note what their ladders did. `together`:
    raise `Uncounted` before any is judged, if any would be answered with it.
    """
    locked = await Locked.made(connection, {request.tenant: request.quota for request in requests})
    if quotas is not None:
        for state in locked.states.values():
            quotas.see(state.name, state.quota)
    asked = await estimating.priced(
        connection, [(r, locked.states[r.tenant], _gate_or_none(locked.gates, r.gate)) for r in requests]
    )
    if together and any(isinstance(each, Uncounted) for each in asked):
        raise Uncounted
    batch = Batch(connection, [request for request in asked if isinstance(request, Request)], locked)
    judged = iter(await batch.judge())
    if news is not None:
        news += batch.news
    return [each if isinstance(each, Uncounted) else next(judged) for each in asked]
