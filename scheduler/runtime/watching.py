"""What the scheduler over a store does about an outage: it watches, and has somebody stand in."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from scheduler.core.policy import Reason
from scheduler.runtime.admission import Admission
from scheduler.runtime.arguments import check_tenant
from scheduler.runtime.outage import Outage
from scheduler.runtime.reports import statistics_of
from scheduler.runtime.standing_in import StandingIn
from scheduler.runtime.values import Statistics
from scheduler.runtime.watch import LONGEST_PAUSE, Fallen, Watch
from scheduler.stores.values import Accepted, Answer, Request, Uncounted, Unreached

T = TypeVar("T")


class Watching(Admission):
    """Knows whether its store is down, and what is answered then."""

    _watchers: asyncio.TaskGroup | None = None

    def _begin_watch(self, outage: Outage) -> None:
        self.watch = Watch(self.store, outage, self._now, self.listener, self._down, self._back)
        self.standing_in = None
        if outage.share is not None:
            quota_of, slots = self.engine.quota_of, self.engine.root.slots
            self.standing_in = StandingIn(self._clock, self.store, outage, quota_of, slots)
            self.standing_in.estimates = self.estimates

    async def _open_watch(self) -> None:
        self._watchers = await asyncio.TaskGroup().__aenter__()
        self.watch.open(self._watchers)
        if self.standing_in is not None:
            self.standing_in.start(self._watchers)

    async def _close_watch(self) -> None:
        """Stop, when all that was granted here is recorded: like what has ended, it waits for the store."""
        watchers, self._watchers = self._watchers, None
        self.watch.close()
        if self.standing_in is not None:
            self.standing_in.stop()
        if watchers is not None:
            await watchers.__aexit__(None, None, None)

    def _down(self) -> None:
        if self.standing_in is not None:
            self.standing_in.step_in()

    def _back(self) -> None:
        if self.standing_in is not None:
            self.standing_in.dismiss()
        if self._watchers is not None:
            self._watchers.create_task(self._clear_up())

    async def _clear_up(self) -> None:
        """Let the store take back what callers were granted by answers that never came."""
        while not self.watch.is_down:
            try:
                await self.store.home.record([])
            except self.store.lost:
                await asyncio.sleep(LONGEST_PAUSE)
            else:
                return

    # --- what is answered without the store -----------------------------------------------------------

    async def _recorded(self, tenant: str | None) -> None:
        """Return when the store knows all that ended here, or was granted without it."""
        if self.standing_in is not None:
            await self.standing_in.recorded(tenant)
        await self.store.home.recorded(tenant)

    async def _accept(self, request: Request) -> Accepted:
        """Have a job committed, or raise why it is not."""
        request = await self._counted(request)
        while True:
            try:
                return await self._ask_once([request], partial(self.store.submit, request))
            except Uncounted:
                request = await self._count_now(request)
            except Fallen:
                raise self.watch.refusal(request) from None

    async def _commit_together(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Have jobs committed in one transaction. An answer each: the refused ones, why."""
        try:
            return await self._ask_once(requests, partial(self.store.submit_together, requests))
        except Fallen:
            return [self.watch.refusal(request) for request in requests]

    def _ask_once(self, requests: Sequence[Request], ask: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """Have jobs committed. Raises `Fallen` if they are not, since the store is down.

        One without a key is not submitted twice. So where the answer is lost, nobody knows whether it was
        accepted, and its caller gets the connection's error instead of a refusal.
        """
        asked = False

        async def submit() -> T:
            nonlocal asked
            for tenant in dict.fromkeys(request.tenant for request in requests):
                await self._recorded(tenant)
            asked = any(request.key is None for request in requests)
            try:
                return await ask()
            except Unreached:
                asked = False
                raise

        return self.watch.attempt(submit, lambda: not asked)

    async def _ask_or(
        self,
        request: Request,
        ask: Callable[[Request], Awaitable[T]],
        here: Callable[[StandingIn, Request], T],
    ) -> T:
        """What the store says, or what is so here while it is down. Raises the refusal where nobody knows."""

        async def asked() -> T:
            await self._recorded(request.tenant)
            return await ask(request)

        try:
            return await self.watch.attempt(asked)
        except Fallen:
            if self.standing_in is None:
                raise self.watch.untold(request) from None
            return here(self.standing_in, request)

    async def statistics(self, tenant: str | None = None) -> Statistics:
        """A snapshot of what is in the store: of everything, or of one tenant.

        While the store is down, of what this process admits meanwhile.
        """
        if tenant is not None:
            check_tenant(tenant)

        async def count() -> dict[str, Any]:
            await self._recorded(tenant)
            counts = await self.store.count(tenant)
            if tenant is None and self.store.hearing.gates:
                gates, now = await self.store.hearing.see()
                counts["gates"] = {name: statistics_of(*known, now) for name, known in gates.items()}
            return counts

        try:
            counts = await self.watch.attempt(count)
        except Fallen:
            return await self._statistics_here(tenant)
        return replace(Statistics(**counts), **self._outages())

    def _outages(self) -> dict[str, Any]:
        here = self.standing_in
        report = self.watch.report(*((0, 0) if here is None else (here.admitted, here.unrecorded)))
        refused = {Reason.STORE_DOWN: report.refused} if report.refused else {}
        return {"store": report, "refused": refused}

    async def _statistics_here(self, tenant: str | None) -> Statistics:
        here = self.standing_in
        if here is None:
            return Statistics(waiting=0, running=0, tenants=0, **self._outages())
        account, now, lines = here.engine.root, self._now(), Counter[str]()
        here.engine.advance(now)
        here.changed()
        if tenant is None:
            for line in (line for known in here.engine.tenants.values() for line in known.lines.values()):
                lines[line.gate.name] += line.length
            found = Statistics(
                waiting=here.engine.waiting,
                running=account.running,
                tenants=len(here.engine.tenants),
                gates={
                    name: statistics_of(gate, lines[name], now)
                    for name, gate in here.engine.gates.items()
                    if name
                },
            )
        else:
            known = here.engine.tenants.get(tenant)
            found = Statistics(
                waiting=0 if known is None else sum(line.length for line in known.lines.values()),
                running=0 if known is None else known.running,
                tenants=int(known is not None),
                levels={} if known is None else known.levels(now),
            )
        return replace(found, **self._outages())
