"""Callers that run their own work over a store: the grants of `admit` and of a hook, in the lines of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from types import TracebackType
from typing import Self

from scheduler.core.entry import ENDED, RUNNING, WAITING
from scheduler.core.policy import Reason
from scheduler.core.quota import NOTHING, NS, Cost, Usage, amount, instance
from scheduler.core.signals import Signal
from scheduler.errors import DeadlineExceeded, ErrRateLimited, QuotaExceeded, SchedulerClosed
from scheduler.runtime.counting import Counting
from scheduler.runtime.durable_ticket import error_of
from scheduler.runtime.grant import Grant, Turn
from scheduler.runtime.standing_in import Back, Shadow, StandingIn
from scheduler.runtime.watch import Fallen, Watch
from scheduler.stores.protocol import Store
from scheduler.stores.values import HOME_LOST, Grown, Heard, Place, Request, Uncounted, Withdrawn


def hear(store: Store, turn: Turn, signal: Signal) -> None:
    """Have the gate of a turn hear how the upstream took its call; one that is over tells nothing."""
    instance("signal", signal, Signal)
    if turn.gate and turn.state is RUNNING:
        store.hearing.hear(Heard(turn.gate, turn.sequence, turn.tenant, turn.cost, turn.slot, signal))


def grow(store: Store, turn: Turn, output_tokens: int) -> None:
    """Have a call's output charged beyond its cost, in steps of a quarter: the store is asked for each."""
    cost = turn.cost
    counts = cost.input_tokens or cost.output_tokens  # otherwise nobody limits its tokens
    if turn.state is RUNNING and counts and not turn.deferred and 4 * output_tokens > 5 * cost.output_tokens:
        turn.cost = Cost(cost.requests, cost.input_tokens, output_tokens)
        store.hearing.grow(Grown(turn.sequence, turn.tenant, turn.tries, output_tokens))


def ensure_open(store: Store, turn: Turn) -> None:
    """Raise `ErrRateLimited` if the gate of a turn was closed since its grant."""
    passes = turn.gate and not turn.deferred  # what is deferred passes none
    until = store.hearing.shut_until(turn.gate, turn.sequence) if passes else None
    if until is not None:
        raise ErrRateLimited(turn.tenant, Reason.SPEND_LIMIT, max(store.until(until), 1 / NS))


class StoredGrant(Grant):
    """A grant that a store gives. `request`: what is asked of it; `sequence`: its row's number, or 0.

    `place`: where it stands in the store's line, also while the store is down; `shadow`: what stands for it
    in this process then, and `run`: that of what it continues.
    """

    __slots__ = ("request",)

    scheduler: Admission
    request: Request
    place: Place | None = None
    shadow: Shadow | None = None
    run: Shadow | None = None

    @classmethod
    def of(cls, scheduler: Admission, request: Request) -> Self:
        """The grant that is asked for."""
        grant = cls(scheduler, request.tenant, request.gate or "", request.policy, request.cost)
        grant.request = request
        return grant

    def hear(self, signal: Signal) -> None:
        """See `Turn.hear`; while the store is down its stand-in hears it, and tells it later."""
        here = self.scheduler.standing_in
        if here is None or not here.is_needed:
            hear(self.scheduler.store, self, signal)
        elif self.gate and self.state is RUNNING:
            here.heard(self, self.shadow, instance("signal", signal, Signal))

    def grow(self, output_tokens: int) -> None:
        """See `Turn.grow`; who granted it charges it."""
        amount("output_tokens", output_tokens)
        if self.shadow is None:
            grow(self.scheduler.store, self, output_tokens)
        elif self.scheduler.standing_in is not None:
            self.scheduler.standing_in.grow(self.shadow, output_tokens)

    def ensure_open(self) -> None:
        """See `Turn.ensure_open`; a process hears from others in the time of a notification."""
        here = self.scheduler.standing_in
        if here is not None and here.is_needed and self.shadow is not None:
            here.ensure_open(self.shadow)
        else:
            ensure_open(self.scheduler.store, self)

    def failed(self, error: Exception) -> None:
        """Tell the waiting caller that it waits in vain."""
        if self.shadow is not None:
            self.shadow.failed(error)
        else:
            super().failed(error)

    @property
    def books(self) -> object:
        """The store, which a worker's job has too."""
        return self.scheduler.store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.scheduler.settle_grant(self, None)


class Admission(Counting):
    """Turns that a store grants, for work that runs here.

    All that `Turns` asks of the engine at once is asked of the store here, and takes a while: nothing is
    decided by `offer`, all of it where the caller waits.
    """

    watch: Watch
    standing_in: StandingIn | None
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
                await self._stand(turn)
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

    async def _stand(self, turn: StoredGrant) -> None:
        """Wait for the grant: in the store's line, and in this process while that one is down.

        Whoever has a place in the store's line keeps it meanwhile, and goes back to it.
        """
        if turn.future is None:
            raise RuntimeError("the grant was not offered")
        while turn.state is not RUNNING:
            if self.watch.is_down:
                await self._stand_here(turn)
                continue
            try:
                await self._stand_in_line(turn)
            except Fallen:
                if self.standing_in is None:
                    raise self.watch.refusal(turn.request) from None
            except Uncounted:
                turn.request = await self._count_now(turn.request)
            except Withdrawn as withdrawn:
                # This process was taken for dead: it joins again.
                if withdrawn.outcome.kind != HOME_LOST:
                    raise error_of(withdrawn.outcome) from None
                turn.place, turn.sequence = None, 0

    async def _stand_in_line(self, turn: StoredGrant) -> None:
        """Wait for the store's grant. Raises `Fallen` when the store goes down, and `Withdrawn`."""
        if turn.place is None:
            turn.place = await self.watch.attempt(partial(self._join, turn))
        else:
            self.store.home.wait_again(turn.place, self._ear(turn))
        told = turn.place.told
        await (told if self.standing_in is None else self.watch.turn(told))
        turn.slot, turn.state = turn.place.slot, RUNNING

    def _ear(self, turn: StoredGrant) -> asyncio.Future[None]:
        """A future that hears of the grant from one attempt on: of an earlier one it must not hear any more.

        Whoever was told meanwhile that it waits in vain is not listened for again.
        """
        if turn.future is not None and turn.future.done() and not turn.future.cancelled():
            error = turn.future.exception()
            if error is not None and not isinstance(error, (Fallen, Withdrawn)):
                raise error
        turn.future = asyncio.get_running_loop().create_future()
        return turn.future

    async def _join(self, turn: StoredGrant) -> Place:
        """Join the store's line, when it knows all that ended here or was granted without it."""
        told = self._ear(turn)
        if self.standing_in is not None:
            await self.standing_in.recorded(turn.tenant)
        await self.store.home.recorded(turn.tenant)
        place = await self.store.home.join(turn.request, told)
        accepted = place.accepted
        turn.sequence, turn.arrival, turn.promised = accepted.id, accepted.arrival, accepted.promised
        turn.cost = accepted.cost or turn.cost
        return place

    async def _stand_here(self, turn: StoredGrant) -> None:
        """Wait for a turn of this process, since the store is down, or until the store is back."""
        here = self.standing_in
        if here is None:
            raise self.watch.refusal(turn.request)
        turn.shadow = here.shadow(turn.request, turn.run, None if turn.place is None else turn.cost)
        try:
            await here.stand(turn.shadow)
        except Back:
            turn.shadow = None
        except (ErrRateLimited, QuotaExceeded) as error:
            turn.shadow = None
            if turn.place is None:
                if isinstance(error, QuotaExceeded):  # it may well fit the whole of the quota
                    raise self.watch.refusal(turn.request) from None
                raise
            await self.watch.until_back(self._ear(turn))  # it was accepted: the store will have its turn
        except BaseException:
            turn.shadow = None
            raise
        else:
            self._granted_here(turn, turn.shadow, here.ahead())

    def _granted_here(self, turn: StoredGrant, shadow: Shadow, ahead: int) -> None:
        if turn.place is None:
            turn.arrival, turn.promised = shadow.arrival + ahead, shadow.promised + ahead
        else:
            self.store.home.give_back(turn.sequence, turn.tenant)
            turn.sequence = 0
        turn.slot, turn.state, turn.cost = shadow.slot + ahead, RUNNING, shadow.cost

    def _give_back(self, turn: Turn) -> None:
        turn.state = ENDED
        if isinstance(turn, StoredGrant) and turn.shadow is not None and self.standing_in is not None:
            self.standing_in.end(turn.shadow, NOTHING)
        if turn.sequence:
            self.store.home.give_back(turn.sequence, turn.tenant)

    def withdraw(self, turn: Turn) -> None:
        """Take a grant back before its call began, waiting or granted."""
        if turn.state is WAITING or turn.state is RUNNING:
            self._give_back(turn)

    def settle_grant(self, turn: Turn, usage: Usage | None) -> None:
        """End a grant; it is recorded as soon as the database can be reached. A second call does nothing."""
        if turn.state is not RUNNING:
            return
        turn.state = ENDED
        if isinstance(turn, StoredGrant) and turn.shadow is not None and self.standing_in is not None:
            self.standing_in.end(turn.shadow, usage)
        else:
            self.store.home.settle(turn.sequence, turn.tenant, usage)
