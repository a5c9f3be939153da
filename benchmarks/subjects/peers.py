"""The other limiters, each as its documentation says; where a default spoils it, also tuned."""

# ruff: noqa: D102 - what a subject's methods do is said once, in `Subject`

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from aiolimiter import AsyncLimiter
from asynciolimiter import LeakyBucketLimiter, Limiter
from pyrate_limiter import GCRA, MonotonicClock, SingleBucketFactory, StateBucket
from pyrate_limiter import Limiter as PyrateLimiter
from pyrate_limiter import Rate as PyrateRate
from throttled import per_duration
from throttled.asyncio import MemoryStore, RateLimiterType, Throttled

from benchmarks.measure import Log, NotPossible, now
from benchmarks.subjects.base import PROMPT, Load, Subject, no_op

FOR_EVER = 3600.0


class Aiolimiter(Subject):
    """``async with limiter``: one AsyncLimiter per tenant."""

    distribution = "aiolimiter"

    async def open(self) -> None:
        load = self.load
        self.limiters = {
            tenant: AsyncLimiter(load.burst, load.burst * load.per / load.rate_of(tenant))
            for tenant in load.tenants
        }

    async def passes(self, tenants: Sequence[str]) -> None:
        limiters = self.limiters
        for tenant in tenants:
            async with limiters[tenant]:
                pass

    async def one(self, tenant: str, log: Log, number: int) -> None:
        async with self.limiters[tenant]:
            log.append((now(), number))

    async def large(self, tenant: str, permits: int, log: Log, number: int) -> None:
        await self.limiters[tenant].acquire(permits)
        log.append((now(), number))

    async def within(self, tenant: str, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.limiters[tenant].acquire(), seconds)

    async def refusals(self, tenants: Sequence[str]) -> None:
        raise NotPossible("`has_capacity` says yes or no, takes no permit and names no time")


class AiolimiterHandler(Aiolimiter):
    """The same, with a handler awaited in the block."""

    async def passes(self, tenants: Sequence[str]) -> None:
        limiters = self.limiters
        for tenant in tenants:
            async with limiters[tenant]:
                await no_op(PROMPT)


class Pyrate(Subject):
    """pyrate-limiter's GCRA bucket, one Limiter per tenant, since a Limiter is held by whoever waits."""

    distribution = "pyrate-limiter"
    buffer: int | None = None

    def _limiter(self, tenant: str) -> Any:
        load = self.load
        rate = PyrateRate(load.rate_of(tenant), load.per * 1000, burst=load.burst)
        bucket = StateBucket([rate], GCRA(), clock=MonotonicClock())
        tuned = {} if self.buffer is None else {"buffer_ms": self.buffer}
        return PyrateLimiter(SingleBucketFactory(bucket, schedule_leak=False), **tuned)

    async def open(self) -> None:
        self.limiters = {tenant: self._limiter(tenant) for tenant in self.load.tenants}

    async def passes(self, tenants: Sequence[str]) -> None:
        limiters = self.limiters
        for tenant in tenants:
            await limiters[tenant].try_acquire_async(tenant)

    async def one(self, tenant: str, log: Log, number: int) -> None:
        await self.limiters[tenant].try_acquire_async(tenant)
        log.append((now(), number))

    async def large(self, tenant: str, permits: int, log: Log, number: int) -> None:
        await self.limiters[tenant].try_acquire_async(tenant, weight=permits)
        log.append((now(), number))

    async def within(self, tenant: str, seconds: float) -> None:
        with suppress(TimeoutError):
            await self.limiters[tenant].try_acquire_async(tenant, timeout=seconds)

    async def refusals(self, tenants: Sequence[str]) -> None:
        raise NotPossible("a refusal is False and names no time")


class PyrateTuned(Pyrate):
    """Without the 50 ms that it adds to every wait by default."""

    buffer = 0


class ThrottledGcra(Subject):
    """throttled-py's GCRA, with a store that holds all tenants: by default it forgets beyond 1,024."""

    distribution = "throttled-py"

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self.by_rate: dict[int, Any] = {}
        self.store = MemoryStore(options={"MAX_SIZE": max(1024, 2 * len(load.tenants))})

    def _limiter(self, rate: int) -> Any:
        if rate not in self.by_rate:
            quota = per_duration(timedelta(seconds=self.load.per), rate, burst=self.load.burst)
            self.by_rate[rate] = Throttled(using=RateLimiterType.GCRA.value, quota=quota, store=self.store)
        return self.by_rate[rate]

    async def open(self) -> None:
        self.limiters = {tenant: self._limiter(self.load.rate_of(tenant)) for tenant in self.load.tenants}

    async def passes(self, tenants: Sequence[str]) -> None:
        limiters = self.limiters
        for tenant in tenants:
            await limiters[tenant].limit(tenant, timeout=FOR_EVER)

    async def refusals(self, tenants: Sequence[str]) -> None:
        limiters = self.limiters
        for tenant in tenants:
            result = await limiters[tenant].limit(tenant)
            if result.limited:
                result.state.retry_after  # noqa: B018 - it is what the caller wants to know

    async def one(self, tenant: str, log: Log, number: int) -> None:
        await self.limiters[tenant].limit(tenant, timeout=FOR_EVER)
        log.append((now(), number))

    async def large(self, tenant: str, permits: int, log: Log, number: int) -> None:
        await self.limiters[tenant].limit(tenant, cost=permits, timeout=FOR_EVER)
        log.append((now(), number))

    async def within(self, tenant: str, seconds: float) -> None:
        await self.limiters[tenant].limit(tenant, timeout=seconds)

    async def retry_times(self, tenant: str, callers: int) -> list[float]:
        results = [await self.limiters[tenant].limit(tenant) for _ in range(callers)]
        return [float(result.state.retry_after) for result in results if result.limited]


class AsynciolimiterLimiter(Subject):
    """asynciolimiter's main class: no burst, but it catches up after a late wake-up."""

    distribution = "asynciolimiter"

    def _limiter(self, tenant: str) -> Any:
        return Limiter(self.load.rate_of(tenant) / self.load.per)

    async def open(self) -> None:
        self.limiters = {tenant: self._limiter(tenant) for tenant in self.load.tenants}

    async def close(self) -> None:
        for limiter in self.limiters.values():
            limiter.reset()

    async def passes(self, tenants: Sequence[str]) -> None:
        limiters = self.limiters
        for tenant in tenants:
            await limiters[tenant].wait()

    async def one(self, tenant: str, log: Log, number: int) -> None:
        await self.limiters[tenant].wait()
        log.append((now(), number))

    async def within(self, tenant: str, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.limiters[tenant].wait(), seconds)


class AsynciolimiterLeaky(AsynciolimiterLimiter):
    """Its leaky bucket: a burst, and no catching up."""

    def _limiter(self, tenant: str) -> Any:
        return LeakyBucketLimiter(self.load.rate_of(tenant) / self.load.per, capacity=self.load.burst)


class QueueWorker(Subject):
    """What people write by hand: a queue and a worker task per tenant, which sleeps between two releases."""

    async def open(self) -> None:
        self.queues: dict[str, asyncio.Queue[asyncio.Future[None]]] = {
            t: asyncio.Queue() for t in self.load.tenants
        }
        self.workers = [asyncio.create_task(self._work(tenant)) for tenant in self.load.tenants]

    async def _work(self, tenant: str) -> None:
        queue, pause = self.queues[tenant], self.load.per / self.load.rate_of(tenant)
        burst = self.load.burst
        while True:
            future = await queue.get()
            if future.done():
                continue
            future.set_result(None)
            if burst > 1:  # the saved permits go first, and are never saved up again
                burst -= 1
            else:
                await asyncio.sleep(pause)

    async def close(self) -> None:
        for worker in self.workers:
            worker.cancel()
        await asyncio.gather(*self.workers, return_exceptions=True)

    async def _wait(self, tenant: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queues[tenant].put_nowait(future)
        await future

    async def passes(self, tenants: Sequence[str]) -> None:
        for tenant in tenants:
            await self._wait(tenant)

    async def one(self, tenant: str, log: Log, number: int) -> None:
        await self._wait(tenant)
        log.append((now(), number))

    async def within(self, tenant: str, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wait(tenant), seconds)
