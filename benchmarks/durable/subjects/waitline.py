"""waitline, by its public names."""

# ruff: noqa: D102 - what a subject's methods do is said once, in `Subject`

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from benchmarks.durable.subjects.base import TEXT, Ran, Ready, Subject
from scheduler import Cost, Policy, Quota, Rate, Scheduler, Usage
from scheduler.runtime.job import Job
from scheduler.stores.postgres import PostgresStore
from scheduler.worker import Worker

POLICY = Policy(max_wait=None, max_queue=1 << 40)
"""A line of 20,000 needs room."""


def number_of(prompt: Any) -> int:
    """The number that a prompt begins with."""
    return int(prompt.partition(" ")[0])


class Waitline(Subject):
    """``Scheduler(store=PostgresStore(dsn))``, and a `Worker` as it comes: 256 jobs at once."""

    answers = True
    concurrency = 256
    usage: tuple[int, int, int] | None = None
    """What the handler says that a job used, if it says anything."""
    left = "select count(*) from waitline.job where state < 2"

    def quota(self, tenant: str) -> Quota:
        return Quota(Rate(self.load.rate(tenant), burst=self.load.burst))

    async def install(self) -> None:
        async with PostgresStore(self.dsn):
            pass

    async def open(self) -> None:
        quotas = {
            self.load.tenant(number): self.quota(self.load.tenant(number))
            for number in range(self.load.tenants)
        }
        self.scheduler = Scheduler(store=PostgresStore(self.dsn), quotas=quotas, policy=POLICY)
        await self.scheduler.__aenter__()

    async def close(self) -> None:
        await self.scheduler.__aexit__(None, None, None)

    async def enqueue(self, number: int) -> None:
        await self.scheduler.enqueue(self.load.tenant(number), f"{number} {TEXT}")

    async def batch(self, numbers: Sequence[int]) -> None:
        await self.scheduler.enqueue_many(
            {"tenant": self.load.tenant(number), "prompt": f"{number} {TEXT}"} for number in numbers
        )

    async def life(self, number: int) -> Any:
        return await self.scheduler.submit(self.load.tenant(number), f"{number} {TEXT}")

    def work(self, ready: Ready, ran: Ran) -> None:
        async def handler(job: Job) -> int:
            number = number_of(job.prompt)
            ran(number)
            if self.usage is not None:
                job.settle(Usage(*self.usage))
            return number

        async def main() -> None:
            async with PostgresStore(self.dsn, migrate=False) as store:
                worker = Worker(handler, store, concurrency=self.concurrency)
                ready()
                await worker.run()

        asyncio.run(main())


class WaitlineTuned(Waitline):
    """As many at once as two batches of the tuned peer."""

    concurrency = 400


class WaitlineWide(Waitline):
    """As many at once as there are in flight."""

    concurrency = 1000


class WaitlineTold(WaitlineWide):
    """Its handler says what each job used."""

    usage = (1, 480, 150)


class WaitlineMetered(WaitlineTold):
    """Tenants with three buckets, jobs with a cost."""

    def quota(self, tenant: str) -> Quota:
        rate = Rate(self.load.rate(tenant), burst=self.load.burst)
        return Quota(rate, input_tokens=rate, output_tokens=rate)

    async def life(self, number: int) -> Any:
        return await self.scheduler.submit(
            self.load.tenant(number), f"{number} {TEXT}", cost=Cost(1, 500, 200)
        )
