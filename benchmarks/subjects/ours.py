"""waitline through its public names with default settings, and the ideal prototype."""

# ruff: noqa: D102 - what a subject's methods do is said once, in `Subject`

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, ClassVar

from benchmarks.ideal import Bucket, Ideal
from benchmarks.measure import Log, NotPossible, now
from benchmarks.subjects.base import PROMPT, Load, Subject, no_op
from scheduler import Cost, ErrRateLimited, Job, Policy, Quota, Rate, Scheduler
from scheduler.runtime.clock import Clock, MonotonicClock
from scheduler.testing.virtual import VirtualClock


async def handler(_: Job) -> None:
    """Do nothing."""


class Waitline(Subject):
    """``async with scheduler.admit(tenant)``. `timerfd` None: the default clock."""

    distribution = "waitline"
    timerfd: bool | None = None
    settings: ClassVar[dict[str, Any]] = {}
    """What differs from the defaults of `Scheduler`."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self.scheduler = Scheduler(
            handler,
            quotas=self._quotas(),
            gates=None if load.gate is None else Quota(Rate(load.gate, per=load.per)),
            policy=self._policy(),
            clock=self._clock(),
            **self.settings,
        )

    def _quotas(self) -> Quota | Callable[[str], Quota]:
        load = self.load

        @lru_cache
        def quota(rate: int, weight: int) -> Quota:
            return Quota(Rate(rate, per=load.per, burst=load.burst), weight=weight)

        if isinstance(load.rate, int):
            return quota(load.rate, 1)
        return lambda tenant: quota(load.rate_of(tenant), load.weight_of(tenant))

    def _policy(self) -> Policy:
        if self.load.strict:
            return Policy.strict()
        # A case with rates of one per hour has waits beyond the default bound.
        return Policy(max_wait=600.0 if self.load.per == 1 else None, max_queue=self.load.max_queue)

    def _clock(self) -> Clock:
        return MonotonicClock(self.timerfd) if self.load.clock is None else VirtualClock()

    async def open(self) -> None:
        try:
            await self.scheduler.__aenter__()
        except (AttributeError, NotImplementedError):
            raise NotPossible("no timerfd on this system") from None

    async def close(self) -> None:
        await self.scheduler.aclose(drain=False)
        await self.scheduler.__aexit__(None, None, None)

    async def passes(self, tenants: Sequence[str]) -> None:
        scheduler = self.scheduler
        for tenant in tenants:
            async with scheduler.admit(tenant):
                pass

    async def refusals(self, tenants: Sequence[str]) -> None:
        scheduler = self.scheduler
        for tenant in tenants:
            try:
                async with scheduler.admit(tenant):
                    pass
            except ErrRateLimited as refusal:
                refusal.retry_after  # noqa: B018 - it is what the caller wants to know

    async def one(self, tenant: str, log: Log, number: int) -> None:
        async with self.scheduler.admit(tenant):
            log.append((now(), number))

    async def large(self, tenant: str, permits: int, log: Log, number: int) -> None:
        async with self.scheduler.admit(tenant, cost=Cost(requests=permits)):
            log.append((now(), number))

    async def within(self, tenant: str, seconds: float) -> None:
        with suppress(ErrRateLimited):
            async with self.scheduler.admit(tenant, timeout=seconds):
                pass

    async def retry_times(self, tenant: str, callers: int) -> list[float]:
        times = []
        for _ in range(callers):
            try:
                async with self.scheduler.admit(tenant, policy=Policy.strict()):
                    pass
            except ErrRateLimited as refusal:
                times.append(refusal.retry_after)
        return times


class WaitlineSubmit(Waitline):
    """``await scheduler.submit(tenant, prompt)`` with a handler that does nothing."""

    async def passes(self, tenants: Sequence[str]) -> None:
        scheduler = self.scheduler
        for tenant in tenants:
            await scheduler.submit(tenant, PROMPT)

    async def refusals(self, tenants: Sequence[str]) -> None:
        scheduler = self.scheduler
        for tenant in tenants:
            try:
                await scheduler.submit(tenant, PROMPT)
            except ErrRateLimited as refusal:
                refusal.retry_after  # noqa: B018 - it is what the caller wants to know

    async def one(self, tenant: str, log: Log, number: int) -> None:
        await self.scheduler.submit(tenant, PROMPT)
        log.append((now(), number))


class WaitlineSlots(Waitline):
    """As many jobs at once as there are waiters, instead of 256."""

    settings: ClassVar[dict[str, Any]] = {"max_running": 1_000_000}


class WaitlineLoop(Waitline):
    """The loop's own timer."""

    timerfd = False


class WaitlineTimerfd(Waitline):
    """A timerfd, or nothing."""

    timerfd = True


class IdealSubject(Subject):
    """The prototype, with a timerfd where there is one."""

    timerfd: bool | None = None

    async def open(self) -> None:
        load = self.load
        self.ideal = self._make()
        for tenant in load.tenants:
            self.ideal.buckets[tenant] = Bucket(load.rate_of(tenant), load.per, load.burst)

    def _make(self) -> Ideal:
        if self.load.clock is not None:
            return Ideal(False, self.load.clock)
        if self.timerfd is not None:
            return Ideal(self.timerfd)
        try:
            return Ideal(True)
        except NotPossible:
            return Ideal(False)

    async def close(self) -> None:
        self.ideal.close()

    async def passes(self, tenants: Sequence[str]) -> None:
        ideal = self.ideal
        for tenant in tenants:
            await ideal.acquire(tenant)

    async def refusals(self, tenants: Sequence[str]) -> None:
        ideal = self.ideal
        for tenant in tenants:
            ideal.check(tenant)

    async def one(self, tenant: str, log: Log, number: int) -> None:
        await self.ideal.acquire(tenant)
        log.append((now(), number))

    async def retry_times(self, tenant: str, callers: int) -> list[float]:
        times = [self.ideal.check(tenant) / 1e9 for _ in range(callers)]
        return [time for time in times if time > 0]


class IdealSubmit(IdealSubject):
    """The prototype, and the handler awaited."""

    async def passes(self, tenants: Sequence[str]) -> None:
        ideal = self.ideal
        for tenant in tenants:
            await ideal.submit(tenant, PROMPT, no_op)

    async def one(self, tenant: str, log: Log, number: int) -> None:
        await self.ideal.submit(tenant, PROMPT, no_op)
        log.append((now(), number))


class IdealLoop(IdealSubject):
    """The loop's own timer."""

    timerfd = False


class IdealTimerfd(IdealSubject):
    """A timerfd, or nothing."""

    timerfd = True
