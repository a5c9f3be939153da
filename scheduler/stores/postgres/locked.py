"""What all operations begin with: locked tenants, and what they end with: saved ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asyncpg import Connection

from scheduler.core.quota import Quota
from scheduler.core.stored import TenantState
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.statements import statement


class Locked:
    """Tenants whose rows this transaction has locked, by name, as they are and as they were."""

    def __init__(self, states: Iterable[TenantState]) -> None:
        self.states = {state.name: state for state in states}
        self._due = {name: state.due for name, state in self.states.items()}
        self._stirred: set[str] = set()

    @classmethod
    async def these(cls, connection: Connection, tenants: Iterable[str]) -> Locked:
        """Lock tenants that exist, in the order of their names."""
        found = await connection.fetch(statement("lock_tenants"), sorted(tenants))
        return cls(map(rows.read_tenant, found))

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

    def not_before(self, now: int) -> int:
        """The time of the decision: the clock's, unless it went back since a tenant was saved."""
        return max(now, *(state.as_of for state in self.states.values())) if self.states else now

    async def time(self, connection: Connection) -> int:
        """The time of the decision, read now that the locks are held."""
        return self.not_before(await connection.fetchval("select waitline.now_ns()"))

    def stir(self, tenant: str) -> None:
        """Somebody left the line: who is first in it now may be another's to grant, though no sooner."""
        self._stirred.add(tenant)

    def sooner(self) -> str | None:
        """When something is due now that was not before, for workers to hear; None for nothing."""
        due = [
            state.due
            for name, state in self.states.items()
            if state.due is not None
            and (name in self._stirred or (before := self._due[name]) is None or state.due < before)
        ]
        return str(min(due)) if due else None

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


async def configured(connection: Connection, tenants: Iterable[str]) -> dict[str, Quota]:
    """Quotas that the configuration gives tenants never seen, of those of which it says something."""
    found = await connection.fetch(statement("first_quotas"), list(tenants))
    return {row["name"]: rows.read_quota(row["quota"]) for row in found if row["quota"] is not None}
