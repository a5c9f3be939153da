"""What all operations begin with: locked tenants, and what they end with: saved ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from itertools import chain
from typing import Any

from asyncpg import Connection

from scheduler.core.quota import Cost, Quota
from scheduler.core.shared import SharedGate
from scheduler.core.stored import LineState, TenantState
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.opened import STEP
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import Unreached


class Locked:
    """Gates, and tenants, whose rows this transaction has locked, by name, as they are and as they were."""

    def __init__(self, states: Iterable[TenantState], gates: Iterable[SharedGate] = ()) -> None:
        self.states = {state.name: state for state in states}
        self.gates = {gate.name: gate for gate in gates}
        self._stirred: set[str] = set()
        self.worse: set[str] = set()
        self._note()

    def _note(self) -> None:
        """This is how they are in the database."""
        self._due = self._dues()
        self._gates = {name: rows.write_gate(gate) for name, gate in self.gates.items()}
        self._lines = {(line.tenant, line.gate): astuple(line) for line in self._all_lines()}

    def _all_lines(self) -> Iterable[LineState]:
        return chain.from_iterable(state.lines.values() for state in self.states.values())

    def _dues(self) -> dict[tuple[str, str], int]:
        """When something is due: of tenants, of their lines, and of gates."""
        found = [((name, ""), state.due) for name, state in self.states.items()]
        found += [((line.tenant, line.gate), line.due) for line in self._all_lines()]
        found += [(("", name), gate.due) for name, gate in self.gates.items()]
        found += [((" calls", name), gate.calls) for name, gate in self.gates.items()]
        return {key: due for key, due in found if due is not None}

    @classmethod
    async def these(cls, connection: Connection, tenants: Iterable[str]) -> Locked:
        """Lock tenants that exist, in the order of their names."""
        (gates, *found) = await connection.fetch(statement("lock_tenants"), sorted(tenants))
        return cls(map(rows.read_tenant, found), rows.read_gates(gates["gates"]))

    @classmethod
    async def made(cls, connection: Connection, tenants: Mapping[str, Quota]) -> Locked:
        """Lock tenants, and make those never seen, with the quota of the configuration or the one given."""
        locked = await cls.these(connection, tenants)
        unseen = [name for name in tenants if name not in locked.states]
        if not unseen:
            return locked
        # Held to the end: whoever changes the configuration comes before this or sees the new rows.
        await connection.execute(statement("see_configuration"))
        given = await configured(connection, unseen)
        now = await connection.fetchval("select waitline.now_ns()")
        fresh = [TenantState.new(name, given.get(name, tenants[name]), now) for name in sorted(unseen)]
        await connection.execute(
            statement("create_tenants"),
            [state.name for state in fresh],
            [rows.write_quota(state.quota) for state in fresh],
            [rows.write_numbers(state.zeros) for state in fresh],
            [rows.write_numbers(state.work) for state in fresh],
            [state.as_of for state in fresh],
            [int(state.name in given) for state in fresh],
        )
        return await cls.these(connection, tenants)

    async def moment(self, connection: Connection, clock: int) -> int:
        """The time of the decision: the clock's, unless it went back since any of these was saved.

        Such a step is made up for, or nobody here would get anything until the clock is where it was.
        """
        times = [state.as_of for state in self.states.values()]
        now = max([clock, *times, *(gate.processed for gate in self.gates.values())])
        if now - clock > STEP:
            await connection.execute("select waitline.catch_up($1)", now)
        return now

    async def time(self, connection: Connection) -> int:
        """The time of the decision, read now that the locks are held."""
        return await self.moment(connection, await connection.fetchval("select waitline.now_ns()"))

    def stir(self, tenant: str) -> None:
        """Somebody left the line: who is first in it now may be another's to grant, though no sooner."""
        self._stirred.add(tenant)

    def worsen(self, tenant: str) -> None:
        """The waits of those in line got worse: they are judged again before all this is over."""
        self.worse.add(tenant)

    def sooner(self) -> str | None:
        """When something is due now that was not before, for workers to hear; None for nothing."""
        before = self._due
        due = [
            time
            for key, time in self._dues().items()
            if key[0] in self._stirred or key not in before or time < before[key]
        ]
        return str(min(due)) if due else None

    def gate_of(self, name: str | None) -> SharedGate | None:
        """The gate of a job, if it passes one. Raises `Unreached` for one that is not locked."""
        if not name:
            return None
        if name not in self.gates:
            raise Unreached(f"gate {name!r} was made since the locks were taken")
        return self.gates[name]

    async def add_lines(self, connection: Connection) -> None:
        """Know the lines of the tenants, which are locked like all gates."""
        found = await connection.fetch(statement("lines_of"), sorted(self.states))
        for row in found:
            self.states[row["tenant"]].lines = rows.read_lines(row["lines"])
        self._note()

    def enter(self, state: TenantState, name: str | None, cost: Cost, paid: bool, now: int) -> None:
        """Let a job in that belongs to the tenant's line, at that gate or where none is, already."""
        if not paid:
            state.add_work(cost, 1)
        gate = self.gate_of(name)
        if gate is not None:
            gate.count(cost, 1)
        if gate is not None or not paid:
            state.due_by(now, name)

    async def save_gates(self, connection: Connection) -> None:
        """Save the gates and lines that changed."""
        if not self.gates:
            return
        for line in self._all_lines():
            stood = _stood(self._lines.get((line.tenant, line.gate)))
            self.gates[line.gate].stood += (line.start is not None) - stood
        gates = [
            row for name, gate in self.gates.items() if (row := rows.write_gate(gate)) != self._gates[name]
        ]
        lines = [
            row
            for line in self._all_lines()
            if (row := astuple(line)) != self._lines.get((line.tenant, line.gate))
        ]
        if gates or lines:
            await connection.execute(
                statement("save_gates"),
                *(zip(*gates, strict=True) if gates else ([], [], [], [], [])),
                *(zip(*lines, strict=True) if lines else tuple([] for _ in fields(LineState))),
            )
        self._note()

    def first_due(self) -> int | None:
        """When something is due at the earliest: of these tenants, their lines, or a gate."""
        return min(self._dues().values(), default=None)

    def columns(self) -> Sequence[list[Any]]:
        """What `grant` and `settle` save: names, zeros, work, running, waiting, as_of, due."""
        states = list(self.states.values())
        return (
            [state.name for state in states],
            [rows.write_numbers(state.zeros) for state in states],
            [rows.write_numbers(state.work) for state in states],
            [state.running for state in states],
            [state.waiting for state in states],
            [state.as_of for state in states],
            [state.due for state in states],
        )


def _stood(line: tuple[Any, ...] | None) -> bool:
    """Whether the head of a line, as it was saved, stood at its gate."""
    return line is not None and LineState(*line).start is not None


async def configured(connection: Connection, tenants: Iterable[str]) -> dict[str, Quota]:
    """Quotas that the configuration gives tenants never seen, of those of which it says something."""
    found = await connection.fetch(statement("first_quotas"), list(tenants))
    return {row["name"]: rows.read_quota(row["quota"]) for row in found if row["quota"] is not None}
