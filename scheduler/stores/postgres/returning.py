"""Home, after the database was away: what was said and not heard is cleared up, what was done is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from scheduler.core.quota import Usage
from scheduler.stores.postgres import recording
from scheduler.stores.postgres.connections import LOST
from scheduler.stores.postgres.home import Answer, Home, Join
from scheduler.stores.values import Debt, Ended, Place, Unreached


class Returning(Home):
    """A home that knows what it does not know: whether those joined whose answer was lost."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._doubt: set[str] = set()
        self._leaving: set[int] = set()
        self._one = asyncio.Lock()

    async def _join(self, joins: Sequence[Join]) -> Sequence[Answer]:
        async with self._one:
            await self._clear_up()
            try:
                return await super()._join(joins)
            except Unreached:
                raise
            except LOST:
                self._doubt.update(request.tenant for request, _ in joins)
                raise

    async def _clear_up(self) -> None:
        """Give back what callers have that nobody here knows of.

        Nobody joins meanwhile, so that whoever is in the database and not known here is nobody's.
        """
        if self._doubt:
            async with self._connections.transaction() as connection:
                known = self._waiting.keys() | self._held.keys() | self._leaving
                await recording.sweep(connection, self.name, self._doubt, known)
            self._doubt.clear()

    # Whoever leaves is in the database until that is recorded, and given back once.

    def give_back(self, caller: int, tenant: str) -> None:
        """See `Home.give_back`."""
        if caller in self._waiting or caller in self._held:
            self._leaving.add(caller)
        super().give_back(caller, tenant)

    async def _give_back(self, callers: dict[int, str]) -> None:
        await super()._give_back(callers)
        self._leaving.difference_update(callers)

    def settle(self, caller: int, tenant: str, usage: Usage | None) -> None:
        """See `Home.settle`."""
        if caller in self._held:
            self._leaving.add(caller)
        super().settle(caller, tenant, usage)

    async def _settle(self, ended: Ended) -> None:
        await super()._settle(ended)
        self._leaving.discard(ended.id)

    # --- what was done without the database -----------------------------------------------------------------

    def wait_again(self, place: Place, told: asyncio.Future[None]) -> None:
        """Have `told` hear of a place's grant from now on, also if that has come already."""
        place.told = told
        if place.lost is not None:
            place.fail(place.lost)
        elif place.accepted.id in self._held:
            told.set_result(None)

    async def record(self, debts: Sequence[Debt]) -> dict[str, int]:
        """Charge what callers used without the database, and take those in that still run.

        Returns the numbers of their rows by their keys. May be repeated when its answer was lost.
        """
        async with self._one:
            await self._clear_up()
            if not debts:
                return {}
            async with self._connections.transaction() as connection:
                numbers = await recording.record(connection, self.name, self._lease_ns, debts)
        for debt in debts:
            self._held |= {numbers[held.key]: debt.tenant for held in debt.held}
        self._start("beat", self._beat)
        return numbers
