"""Callers that run their own work over a store: the grants of `admit` and of a hook, in the lines of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import TracebackType
from typing import Self

from scheduler.core.entry import ENDED, RUNNING, WAITING
from scheduler.core.quota import NS, Usage
from scheduler.core.signals import Signal
from scheduler.errors import DeadlineExceeded, SchedulerClosed
from scheduler.runtime.durable_ticket import error_of
from scheduler.runtime.grant import Grant, Turn
from scheduler.runtime.scheduler import Scheduler
from scheduler.stores.protocol import Store
from scheduler.stores.values import HOME_LOST, Request, Withdrawn


class StoredGrant(Grant):
    """A grant that a store gives. `request`: what is asked of it; `sequence`: its row's number, or 0."""

    __slots__ = ("request",)

    scheduler: Admission
    request: Request

    @classmethod
    def of(cls, scheduler: Admission, request: Request) -> Self:
        """The grant that is asked for."""
        grant = cls(scheduler, request.tenant, "", request.policy, request.cost)
        grant.request = request
        return grant

    def hear(self, signal: Signal) -> None:
        """Nothing: a store has no shared gates yet."""

    def grow(self, output_tokens: int) -> None:
        """Nothing: all of it is charged when it is settled."""

    def ensure_open(self) -> None:
        """Nothing: a store has no shared gates yet."""

    @property
    def books(self) -> object:
        """The store, which a worker's job has too."""
        return self.scheduler.store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.scheduler.settle_grant(self, None)


class Admission(Scheduler):
    """Turns that a store grants, for work that runs here.

    All that `Turns` asks of the engine at once is asked of the store here, and takes a while: nothing is
    decided by `offer`, all of it where the caller waits.
    """

    store: Store
    _pending = 0

    def offer(self, turn: Turn) -> bool:
        """False: whether it is now is for the store to say, where `turn` is awaited."""
        if self.closed:
            raise SchedulerClosed("the scheduler is closed")
        turn.future = asyncio.get_running_loop().create_future()
        return False

    def until(self, turn: Turn, told: bool = True) -> Awaitable[None]:
        """What to await for the turn of a grant; it gives back by itself what it holds when it fails."""
        return self.turn(turn, told)

    def resumed(self, turn: Turn) -> None:
        """The caller has its turn: nothing is left to do."""

    def gone(self, turn: Turn) -> None:
        """The caller waits no more: all was given back already."""

    async def turn(self, turn: Turn, told: bool = True) -> None:
        """Stand in line until it is the caller's turn. A cancellation gives back what it holds."""
        if not isinstance(turn, StoredGrant):
            raise TypeError(f"turn: a store grants what `admit` has made, got {type(turn).__name__}")
        timeout = turn.request.timeout
        turn.state = WAITING
        turn.sequence = 0
        self._pending += 1
        bound = asyncio.timeout(None if timeout is None else timeout / NS)
        try:
            async with bound:
                while not await self._stands(turn):
                    turn.future = asyncio.get_running_loop().create_future()
        except BaseException as error:
            self._give_back(turn)
            if isinstance(error, TimeoutError) and bound.expired():
                raise DeadlineExceeded(turn.tenant, "timeout", (timeout or 0) / NS) from None
            raise
        finally:
            turn.future = None
            self._pending -= 1
            if not self._pending:
                self._quiet.set()

    async def _stands(self, turn: StoredGrant) -> bool:
        """Join the line and wait for the grant. False if this process was taken for dead meanwhile."""
        if turn.future is None:
            raise RuntimeError("the grant was not offered")
        await self.store.home.recorded(turn.tenant)
        place = await self.store.home.join(turn.request, turn.future)
        accepted = place.accepted
        turn.sequence, turn.arrival, turn.promised = accepted.id, accepted.arrival, accepted.promised
        try:
            await turn.future
        except Withdrawn as withdrawn:
            if withdrawn.outcome.kind == HOME_LOST:
                return False
            raise error_of(withdrawn.outcome) from None
        turn.slot, turn.state = place.slot, RUNNING
        return True

    def _give_back(self, turn: Turn) -> None:
        turn.state = ENDED
        if turn.sequence:
            self.store.home.give_back(turn.sequence, turn.tenant)

    def withdraw(self, turn: Turn) -> None:
        """Take a grant back before its call began, waiting or granted."""
        if turn.state is WAITING or turn.state is RUNNING:
            self._give_back(turn)

    def settle_grant(self, turn: Turn, usage: Usage | None) -> None:
        """End a grant; it is recorded as soon as the database can be reached. A second call does nothing."""
        if turn.state is RUNNING:
            turn.state = ENDED
            self.store.home.settle(turn.sequence, turn.tenant, usage)
