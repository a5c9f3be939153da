"""What people have without a queue: refusals, the SDK's retries, a semaphore for each tenant."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import ClassVar

from benchmarks.degradation.account import Account
from benchmarks.degradation.journal import Journal
from benchmarks.degradation.rows.base import Refusal, Row, Setting
from benchmarks.degradation.trace import Prompt
from scheduler.testing.claude.limits import Bucket

OVERSOLD = 3
"""Tenants are not all busy at once: each is given this many times its equal share of the requests."""

AT_ONCE = 4
"""Calls of one tenant under way at once, where each has a semaphore."""


class RejectAtOnce(Row):
    """A token bucket of requests for each tenant; without a permit the caller is refused, and stays away."""

    name: ClassVar[str] = "reject at once"

    def __init__(self, setting: Setting, account: Account, journal: Journal) -> None:
        super().__init__(setting, account, journal)
        share = max(1, setting.offer.per_minute[0] * OVERSOLD // setting.tenants)
        self._buckets: defaultdict[str, Bucket] = defaultdict(lambda: Bucket(share, 60.0, setting.now()))

    async def serve(self, prompt: Prompt) -> None:
        """Take a permit, or refuse."""
        bucket = self._buckets[prompt.tenant]
        bucket.refill(self.setting.now())
        if bucket.wait_ns(1):
            raise Refusal
        bucket.take(1)
        await self.account.call(prompt)


class SdkRetries(Row):
    """No limiter at all: the SDK tries three times."""

    name: ClassVar[str] = "SDK retries"

    async def serve(self, prompt: Prompt) -> None:
        """Call."""
        await self.call_as_sdk(prompt)


class SemaphorePerTenant(Row):
    """Some calls of each tenant at once, each with the SDK's retries."""

    name: ClassVar[str] = "semaphore per tenant"

    def __init__(self, setting: Setting, account: Account, journal: Journal) -> None:
        super().__init__(setting, account, journal)
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))

    async def serve(self, prompt: Prompt) -> None:
        """Call when one of the tenant's slots is free."""
        async with self._slots[prompt.tenant]:
            await self.call_as_sdk(prompt)
