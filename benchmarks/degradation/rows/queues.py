"""One queue for everybody, first come first served, in front of the SDK's retries."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from benchmarks.degradation.account import Account
from benchmarks.degradation.journal import Journal
from benchmarks.degradation.rows.base import Guess, Row, Setting
from benchmarks.degradation.trace import Prompt
from benchmarks.measure import NS
from scheduler.testing.claude.limits import Bucket

AT_ONCE = 64
"""Calls under way at once: about twice what the account answers at its limit."""


class Fifo(Row):
    """A queue paced by the account's requests per minute, with a bound on calls at once."""

    name: ClassVar[str] = "FIFO, paced by requests"
    dimensions: ClassVar[tuple[int, ...]] = (0,)

    def __init__(self, setting: Setting, account: Account, journal: Journal) -> None:
        super().__init__(setting, account, journal)
        offer = setting.offer
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._turn = asyncio.Lock()  # serves in the order in which it is asked
        self._guess = Guess()
        self._buckets = {
            dimension: Bucket(offer.per_minute[dimension], offer.burst_s, setting.now())
            for dimension in self.dimensions
        }

    async def serve(self, prompt: Prompt) -> None:
        """Wait for a slot, for everybody who came before, and for the permits."""
        async with self._slots:
            async with self._turn:
                charged = await self._pace(prompt)
            used = await self.call_as_sdk(prompt)
        self._guess.learn(prompt.tenant, used.output_tokens)
        self._correct(charged, prompt.amounts)

    async def _pace(self, prompt: Prompt) -> tuple[int, int, int]:
        """Take the permits once all of them are there."""
        expected = self._guess.of(prompt.tenant)
        # What a full bucket cannot hold would wait for ever.
        most = (self.setting.offer.burst(dimension) for dimension in range(3))
        requests, input_tokens, output_tokens = map(min, (1, prompt.guessed_input, expected), most)
        costs = requests, input_tokens, output_tokens
        self.journal.fates[prompt.number].estimate = expected
        while wait := max(self._missing(dimension, costs[dimension]) for dimension in self.dimensions):  # noqa: ASYNC110
            await asyncio.sleep(wait / NS)
        for dimension, bucket in self._buckets.items():
            bucket.take(costs[dimension])
        return costs

    def _missing(self, dimension: int, permits: int) -> int:
        bucket = self._buckets[dimension]
        bucket.refill(self.setting.now())
        return bucket.wait_ns(permits)

    def _correct(self, charged: tuple[int, ...], used: tuple[int, ...]) -> None:
        for dimension, bucket in self._buckets.items():
            bucket.refill(self.setting.now())
            bucket.take(used[dimension] - charged[dimension])


class FifoOfTokens(Fifo):
    """The same queue, paced by all three limits with the estimates and corrections that waitline gets.

    The best that one queue can do: what is left between it and waitline is the order between tenants.
    """

    name: ClassVar[str] = "FIFO, paced by all limits"
    dimensions: ClassVar[tuple[int, ...]] = (0, 1, 2)
