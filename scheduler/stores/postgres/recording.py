"""Recording: what callers used while the database was away is charged once, and who still runs is known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any

from asyncpg import Connection

from scheduler.stores.postgres import settling
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.settlement import Settlement
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import DONE, RUNNING, Debt

KIND = "outage"
"""The kind of the row that says that a debt was charged; it goes the way of results."""


async def record(connection: Connection, home: str, lease: int, debts: Sequence[Debt]) -> dict[str, int]:
    """Charge debts, those whose row is not there yet; the numbers of all rows by their keys.

    The row is what makes this safe to repeat: a commit whose answer was lost is found to be done.
    """
    locked = await Locked.made(connection, {debt.tenant: debt.quota for debt in debts})
    keys = [(debt.tenant, key) for debt in debts for key in _keys(debt)]
    found = await connection.fetch(statement("keys"), *zip(*keys, strict=True))
    numbers = {row["key"]: int(row["id"]) for row in found}
    new = [debt for debt in debts if debt.key not in numbers]
    missing = [key for debt in new for key in _keys(debt)]
    (clock,) = await connection.fetch(statement("numbers"), len(missing))
    now = await locked.moment(connection, clock["now"])
    numbers |= dict(zip(missing, clock["numbers"], strict=True))
    for debt in new:
        state = locked.states[debt.tenant]
        state.zeros = debt.owed.onto(state.zeros, state.shape, now)
        state.running += len(debt.held)
        state.as_of = max(state.as_of, now)
        locked.worsen(debt.tenant)
        _charge_gates(locked, debt, now)
    rows = list(chain.from_iterable(_rows(debt, locked.gates, now) for debt in new))
    names, zeros, _, running, _, as_of, _ = locked.columns()
    await connection.execute(
        statement("record"),
        names,
        zeros,
        running,
        as_of,
        [numbers[row[1]] for row in rows],
        *zip(*rows, strict=True) if rows else [[] for _ in range(9)],
        home,
        now,
        lease,
        KIND,
    )
    await locked.save_gates(connection)
    await Settlement(locked, now).judge(connection)
    return numbers


def _keys(debt: Debt) -> Iterable[str]:
    return debt.key, *(held.key for held in debt.held)


def _charge_gates(locked: Locked, debt: Debt, now: int) -> None:
    """Charge gates what passed them, and have those who still run hold slots; but for gates that are gone."""
    for name, owed in debt.gates.items():
        gate = locked.gates.get(name)
        if gate is not None:
            gate.zeros = owed.onto(gate.zeros, gate.shape, now)
            gate.move(now)
    for held in debt.held:
        if held.gate in locked.gates:
            locked.gates[held.gate].free -= 1


def _rows(debt: Debt, gates: Collection[str], now: int) -> Iterable[tuple[Any, ...]]:
    """(tenant, key, state, arrival, slot, requests, input tokens, output tokens, gate)."""
    used = debt.owed.used
    amounts = used.requests, used.input_tokens, used.output_tokens
    yield debt.tenant, debt.key, DONE, now, now, *(max(0, amount) for amount in amounts), None
    for held in debt.held:
        cost = held.cost
        times = min(held.arrival, now), min(held.slot, now)
        gate = held.gate if held.gate in gates else None
        amounts = cost.requests, cost.input_tokens, cost.output_tokens
        yield debt.tenant, held.key, RUNNING, *times, *amounts, gate


async def sweep(connection: Connection, home: str, tenants: Collection[str], known: Collection[int]) -> None:
    """Take back callers of a process that it does not know: they joined, and the answer was lost."""
    found = await connection.fetch(statement("home_rows"), home, sorted(tenants))
    unknown = {row["id"]: row["tenant"] for row in found if row["id"] not in known}
    if unknown:
        await settling.give_back(connection, unknown)
