"""Counting over a store: what a call has for input is counted here, what it is charged is found out there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from scheduler.core.account import shape_of
from scheduler.core.quota import NS, Quota
from scheduler.errors import DeadlineExceeded, SchedulerClosed
from scheduler.runtime.scheduler import Scheduler
from scheduler.stores.protocol import Store
from scheduler.stores.values import Answer, Request, Uncounted, Unpriced


class Counting(Scheduler):
    """Counts the input of calls that name no cost, where their tokens are limited as far as is known here.

    The store knows better, and is asked again with a count where it says `Uncounted`.
    """

    store: Store

    def _unpriced(self, request: Request, prompt: Any, counted: int | None = None) -> Request:
        """A request that names no cost, its prompt counted unless that is needless or takes a while."""
        if counted is None:
            unpriced = self._uncounted(prompt, request.tenant, request.quota, request.gate)
        else:
            unpriced = Unpriced(prompt, self.estimates.knobs, counted)
        return request._replace(unpriced=unpriced)

    def _uncounted(self, prompt: Any, tenant: str, quota: Quota, gate: str | None) -> Unpriced:
        wanted = not self.estimates.takes_a_while and self._is_metered(tenant, quota, gate)
        return Unpriced(prompt, self.estimates.knobs, self.estimates.count(prompt) if wanted else None)

    def _seems_metered(self, request: Request) -> bool:
        return self._is_metered(request.tenant, request.quota, request.gate)

    def _is_metered(self, tenant: str, quota: Quota, gate: str | None) -> bool:
        """Whether somebody limits a tenant's tokens, as far as is known here; `quota`: its first one."""
        if shape_of(self.store.last_quota(tenant) or quota).metered:
            return True
        known = None if gate is None else self.store.hearing.gates.get(gate)
        return known is not None and known.shape.metered

    async def _counted(self, request: Request) -> Request:
        """A request with its count, if that is needed and was not made at once."""
        unpriced = request.unpriced
        if unpriced is None or unpriced.counted is not None or not self.estimates.takes_a_while:
            return request
        return await self._count_now(request) if self._seems_metered(request) else request

    async def _count_now(self, request: Request) -> Request:
        """Count a request's prompt, which may take a while: that is part of its timeout."""
        unpriced, began = request.unpriced, self._now()
        if unpriced is None:
            raise RuntimeError("a request that names its cost needs no count")
        if not self.estimates.takes_a_while:
            counted = self.estimates.count(unpriced.prompt)
            return request._replace(unpriced=unpriced._replace(counted=counted))
        timeout = request.timeout
        seconds = None if timeout is None else timeout / NS
        counted = await self._count_later(request.tenant, unpriced.prompt, seconds)
        if self.closed:
            raise SchedulerClosed("the scheduler is closed")
        if timeout is not None:
            timeout -= self._now() - began
            if timeout <= 0:
                raise DeadlineExceeded(request.tenant, "timeout", seconds or 0.0)
        return request._replace(timeout=timeout, unpriced=unpriced._replace(counted=counted))

    async def _with_counts(
        self, requests: Sequence[Request], ask: Callable[[Sequence[Request]], Awaitable[Sequence[Answer]]]
    ) -> list[Answer]:
        """The same for requests that are asked together. Those that cannot be counted are answered why."""
        slow = self.estimates.takes_a_while
        found = await self._count_some(requests, lambda request: slow and self._seems_metered(request))
        try:
            return await self._asked(found, ask)
        except Uncounted:
            return await self._asked(await self._count_some(found, lambda _: True), ask)

    async def _count_some(
        self, requests: Sequence[Request | Exception], wanted: Callable[[Request], bool]
    ) -> list[Request | Exception]:
        found = list(requests)
        places = [
            place
            for place, request in enumerate(requests)
            if isinstance(request, Request)
            and request.unpriced is not None
            and request.unpriced.counted is None
            and wanted(request)
        ]
        counts = (
            self._count_now(request) for place in places if isinstance(request := requests[place], Request)
        )
        for place, counted in zip(places, await asyncio.gather(*counts, return_exceptions=True), strict=True):
            if isinstance(counted, BaseException) and not isinstance(counted, Exception):
                raise counted
            found[place] = counted
        return found

    async def _asked(
        self,
        requests: Sequence[Request | Exception],
        ask: Callable[[Sequence[Request]], Awaitable[Sequence[Answer]]],
    ) -> list[Answer]:
        good = [request for request in requests if isinstance(request, Request)]
        answers = iter(await ask(good) if good else ())
        return [next(answers) if isinstance(request, Request) else request for request in requests]
