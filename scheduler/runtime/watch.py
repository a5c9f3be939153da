"""Whether the store is down: how that is noticed, who is told, and how the end of it is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from scheduler.core.account import Account, Projection, shape_of
from scheduler.core.policy import Reason
from scheduler.core.quota import NS
from scheduler.core.signals import News, What
from scheduler.core.tenant import Echo
from scheduler.errors import ErrRateLimited, SchedulerClosed, SchedulerError
from scheduler.runtime.outage import Outage
from scheduler.runtime.values import StoreStatistics
from scheduler.stores.protocol import Store
from scheduler.stores.values import Request

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between tries to reach a store that is down: doubled from the first to the longest."""

STEP = 1_000_000
"""Nanoseconds between the times that two callers are told, where their tenant's rate does not tell them."""

MOST_ECHOES = 10_000
"""Tenants whose callers are told times of their own by a store that is down: those refused last."""


class Fallen(Exception):
    """The store went down before it answered."""


class Watch:
    """Whether the store can be reached. Calls find out that it cannot, and one task, that it can again.

    `on_down` and `on_back` run in the moment in which that is so, before any call hears of it.
    """

    def __init__(
        self,
        store: Store,
        outage: Outage,
        now: Callable[[], int],
        listener: Callable[[News], object] | None,
        on_down: Callable[[], None],
        on_back: Callable[[], None],
    ) -> None:
        self.outage = outage
        self.is_down = False
        self.outages = 0
        self.refused = 0
        self._store = store
        self._now = now
        self._listener = listener
        self._on_down = on_down
        self._on_back = on_back
        self._since = 0
        self._group: asyncio.TaskGroup | None = None
        self._task: asyncio.Task[None] | None = None
        self._by = math.inf
        self._next = 0.0
        self._verdict = asyncio.Event()
        self._asking: dict[asyncio.Timeout, float] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._patient: dict[asyncio.Future[None], None] = {}
        self._echoes: dict[str, Echo] = {}

    # --- life ---------------------------------------------------------------------------------------

    def open(self, group: asyncio.TaskGroup) -> None:
        """Try again in tasks of this group."""
        self._group = group

    def close(self) -> None:
        """Try no more."""
        self._group = None
        if self._task is not None:
            self._task.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        for bound in self._asking:
            bound.reschedule(0)
        self._let_go()

    # --- asking -------------------------------------------------------------------------------------

    async def attempt(self, work: Callable[[], Awaitable[T]], again: Callable[[], bool] = lambda: True) -> T:
        """Ask the store for something, again while it is out of reach. Raises `Fallen` when it is down.

        `again`: whether that may be asked twice. If not, what it raised is raised, or ConnectionError if it
        was not answered.
        """
        loop = asyncio.get_running_loop()
        by = loop.time() + self.outage.patience
        if self._alarm is None:
            self._alarm = loop.call_at(by - self.outage.patience / 2, self._unanswered)
        bound = asyncio.timeout(None)
        try:
            async with bound:
                self._asking[bound] = by
                while not self.is_down:
                    try:
                        return await work()
                    except SchedulerError:
                        raise
                    except self._store.lost:
                        self.suspect(by)
                        if not again():
                            raise
                    await self._before_another(by)
        except TimeoutError:
            if not bound.expired():
                raise
            if self._group is None:
                raise SchedulerClosed("the scheduler was closed while the call waited") from None
            if not again():
                raise ConnectionError("the store did not answer: what it did is not known") from None
        finally:
            self._asking.pop(bound, None)
        raise Fallen

    async def _before_another(self, by: float) -> None:
        if asyncio.get_running_loop().time() >= by:
            self._fall()  # it answers, and does nothing that it is asked for
        else:
            await self._verdict.wait()
            await asyncio.sleep(FIRST_PAUSE)

    def _unanswered(self) -> None:
        """Suspect a store that does not answer at all, while there is time left to make sure.

        One timer serves all that ask: the first of them has asked for the longest.
        """
        loop, self._alarm = asyncio.get_running_loop(), None
        oldest = next(iter(self._asking.values()), None)
        if oldest is None:
            return
        early = oldest - self.outage.patience / 2
        if early <= loop.time():
            self.suspect(oldest)
            early = loop.time() + self.outage.patience / 2
        self._alarm = loop.call_at(early, self._unanswered)

    async def turn(self, told: asyncio.Future[None]) -> None:
        """Wait for a grant of the store. Raises `Fallen` when that goes down."""
        if self.is_down:
            raise Fallen
        self._waiting[told] = None
        try:
            await told
        finally:
            self._waiting.pop(told, None)

    async def until_back(self, told: asyncio.Future[None]) -> None:
        """Wait until the store is back; `told` hears of it, and may hear of other things."""
        if self.is_down and self._group is not None:
            self._patient[told] = None
            try:
                await told
            finally:
                self._patient.pop(told, None)

    def _let_go(self) -> None:
        for told in self._patient:
            if not told.done():
                told.set_result(None)

    # --- down, and back -----------------------------------------------------------------------------

    def suspect(self, by: float) -> None:
        """Look whether the store can be reached; if not until a time of the loop, it is down."""
        self._by = min(self._by, by)
        if self._group is not None and (self._task is None or self._task.done()):
            self._verdict.clear()
            self._task = self._group.create_task(self._look())

    async def _look(self) -> None:
        loop, pause = asyncio.get_running_loop(), FIRST_PAUSE
        while not await self._reached():
            now = loop.time()
            if not self.is_down and now >= self._by:
                self._fall()
                pause = FIRST_PAUSE
            wait = pause if self.is_down else min(pause, self._by - now)
            self._next, pause = now + wait, min(LONGEST_PAUSE, 2 * pause)
            await asyncio.sleep(wait)
        self._by = math.inf
        if self.is_down:
            self._rise()
        self._verdict.set()

    async def _reached(self) -> bool:
        """Whether the store answers, in the time that is left or in `patience`."""
        patience, now = self.outage.patience, asyncio.get_running_loop().time()
        most = max(patience / 4, min(self._by - now, patience))
        self._next = now + most
        try:
            async with asyncio.timeout(most):
                await self._store.reach()
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it cannot be used
            return False
        return True

    def _fall(self) -> None:
        if self.is_down:
            return
        self.is_down = True
        self.outages += 1
        self._since = self._now()
        self._verdict.set()
        self._by = math.inf
        self._on_down()
        # In the order in which they came, so that they go on in that order.
        now = asyncio.get_running_loop().time()
        for bound in self._asking:
            bound.reschedule(now)
        self._asking.clear()
        waiting, self._waiting = self._waiting, {}
        for told in waiting:
            if not told.done():
                told.set_exception(Fallen())
        self._tell(What.STORE_DOWN, 0.0)
        self.suspect(math.inf)

    def _rise(self) -> None:
        self.is_down = False
        self._echoes.clear()
        self._on_back()
        self._let_go()
        self._tell(What.STORE_BACK, (self._now() - self._since) / NS)

    def _tell(self, what: What, value: float) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().call_soon(self._listener, News("", what, self._now(), value))

    # --- refusing -----------------------------------------------------------------------------------

    def untold(self, request: Request) -> ErrRateLimited:
        """What a call would be told. Leaves no trace."""
        left = max(0.0, self._next - asyncio.get_running_loop().time())
        return ErrRateLimited(request.tenant, Reason.STORE_DOWN, left + STEP / NS)

    def refusal(self, request: Request) -> ErrRateLimited:
        """Why a call is refused, and when it would be served if the store answers the next time it is asked.

        Those who were refused before it would be served before it, by their tenant's rate.
        """
        self.refused += 1
        now = self._now()
        left = max(0.0, self._next - asyncio.get_running_loop().time())
        opens = now + math.ceil(left * NS) + STEP
        account = Account(shape_of(request.quota), opens)
        echo = self._echoes.pop(request.tenant, None) or Echo(account.zeros, now)
        self._echoes[request.tenant] = echo
        if len(self._echoes) > MOST_ECHOES:  # that of the tenant which was refused longest ago
            del self._echoes[next(iter(self._echoes))]
        bound, amounts = max(1, request.policy.max_queue), account.shape.amounts(request.cost)
        start = echo.queue(Projection(account, opens), amounts, opens, STEP, bound, now)
        return ErrRateLimited(request.tenant, Reason.STORE_DOWN, max(start - now, STEP) / NS)

    def report(self, admitted: int = 0, unrecorded: int = 0) -> StoreStatistics:
        """How it stands with the store."""
        down = (self._now() - self._since) / NS if self.is_down else None
        return StoreStatistics(down, self.outages, self.refused, admitted, unrecorded)
