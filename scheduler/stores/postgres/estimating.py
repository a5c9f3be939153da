"""Estimating: what jobs are charged that name no cost, by what was learned from all processes' calls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from asyncpg import Connection

from scheduler.core import learning
from scheduler.core.learning import Mean
from scheduler.core.quota import Usage
from scheduler.core.shared import SharedGate
from scheduler.core.stored import TenantState
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import Request, Uncounted, Unpriced

EVERYBODY = ""
"""Whose mean is that of a gate; no tenant has this name."""

Pair = tuple[str, str]
"""(tenant, gate); the gate has no name where there is none."""


class Lesson(NamedTuple):
    """What a call used of whose input so much was counted."""

    tenant: str
    gate: str
    counted: int
    usage: Usage


Asked = tuple[Request, TenantState, SharedGate | None]
"""A request, and who it is that may limit its tokens."""


async def priced(connection: Connection, asked: Sequence[Asked]) -> list[Request | Uncounted]:
    """The requests with their costs: those that name none get an estimate where their tokens are limited.

    To be called under the locks of the tenants. `Uncounted` in place of one of which that would take a count.
    """
    pairs = {
        (who, place)
        for request, state, gate in asked
        if _is_estimated(request, state, gate)
        for place in [name_of(gate)]
        for who in (request.tenant, EVERYBODY)
    }
    known = await _known(connection, "learned", pairs) if pairs else {}
    return [_priced(*each, known) for each in asked]


def name_of(gate: SharedGate | None) -> str:
    """The gate of a pair."""
    return "" if gate is None else gate.name


def _is_estimated(request: Request, state: TenantState, gate: SharedGate | None) -> bool:
    if request.unpriced is None:
        return False
    return state.shape.metered or (gate is not None and gate.shape.metered)


def _priced(
    request: Request, state: TenantState, gate: SharedGate | None, known: dict[Pair, Mean]
) -> Request | Uncounted:
    unpriced = request.unpriced
    if unpriced is None:
        return request
    if not _is_estimated(request, state, gate):
        return request._replace(unpriced=None)
    if unpriced.counted is None:
        return Uncounted()
    place = name_of(gate)
    learned = known.get((request.tenant, place)) or known.get((EVERYBODY, place))
    cost = learning.estimate(unpriced.counted, learned, unpriced.knobs)
    shared = None if gate is None else gate.shape
    return request._replace(cost=learning.within(cost, unpriced.counted, state.shape, shared))


def counted_of(unpriced: Unpriced | None) -> int | None:
    """What is kept with a job to learn from it: the count that its cost is made of."""
    return None if unpriced is None else unpriced.counted


async def learn(connection: Connection, lessons: Sequence[Lesson]) -> None:
    """Learn from calls in the order in which they ended; the last thing that a transaction does.

    Where there is no gate, all settlements that teach anything meet at one row, for the length of a commit.
    """
    if not lessons:
        return
    pairs = {(who, lesson.gate) for lesson in lessons for who in (lesson.tenant, EVERYBODY)}
    means = await _known(connection, "lock_learned", pairs)
    for lesson in lessons:
        own, all_of_it = (lesson.tenant, lesson.gate), (EVERYBODY, lesson.gate)
        means[own], means[all_of_it] = learning.learn(
            means.get(own), means.get(all_of_it), lesson.counted, lesson.usage
        )
    changed = [(*pair, *mean) for pair, mean in sorted(means.items())]
    await connection.execute(statement("learn"), *zip(*changed, strict=True))


async def _known(connection: Connection, name: str, pairs: Collection[Pair]) -> dict[Pair, Mean]:
    found = await connection.fetch(statement(name), *zip(*sorted(pairs), strict=True))
    return {
        (row["tenant"], row["gate"]): [row["surplus"], row["output"]]
        for row in found
        if row["output"] is not None
    }
