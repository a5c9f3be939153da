"""A process of callers: people who ask for their turn, do something in it, or change their mind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scheduler import ErrRateLimited, Grant, JobFailed, Quota, Scheduler, Usage
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import LOST
from tests.faults.roles import PATIENT, Log, Role, trap_of

SLOTS = 3
"""Of a tenant that has callers only."""


class Asking:
    """Callers of one process, of all of its tenants.

    What they are about to do is logged before it is done: of each grant that ends, whether it was used.
    """

    def __init__(self, role: Role) -> None:
        folder = Path(role.folder)
        self._role = role
        self._starts, self._wishes = Log(folder / "blocks"), Log(folder / "wishes")
        self._inside = 0
        self._trap = trap_of(role, lambda: self._inside > 0 or not role.holding, settle="end")

    async def run(self) -> None:
        while True:
            try:
                await self._run()
            except LOST:  # the database was down when it began
                await asyncio.sleep(0.1)

    async def _run(self) -> None:
        role = self._role
        store = PostgresStore(role.dsn, lease=role.lease, migrate=False)
        store.home.name = role.name  # for the witness to know it by
        async with (
            Scheduler(store=store, quotas=self._quota, policy=PATIENT) as scheduler,
            asyncio.TaskGroup() as group,
        ):
            own = [tenant for tenant in role.tenants if is_of_callers(tenant)]
            for number in range(role.people):  # most of them do not stand behind jobs
                tenants = own if own and number % 3 else role.tenants
                group.create_task(self._person(scheduler, tenants, random.Random(f"{role.seed} {number}")))

    def _quota(self, tenant: str) -> Quota:
        """Callers among themselves wait for slots, so that there is always somebody to grant."""
        quota = self._role.quota
        return replace(quota, concurrency=SLOTS) if is_of_callers(tenant) else quota

    async def _person(self, scheduler: Scheduler, tenants: Sequence[str], rng: random.Random) -> None:
        while True:
            tenant = rng.choice(tenants)
            try:
                grant = scheduler.admit(tenant)
                if rng.random() < 0.3:
                    await self._change_mind(grant, rng)
                else:
                    await self._work(grant, rng)
            except JobFailed as failed:
                if failed.kind != "cancelled" or not is_forgotten(tenant):
                    raise
            except (*LOST, ErrRateLimited):  # refused while the store is down: its policy refuses nobody
                await asyncio.sleep(0.05)

    async def _work(self, grant: Grant, rng: random.Random) -> None:
        async with grant:
            self._starts.write(
                job=grant.sequence,
                tenant=grant.tenant,
                at=time.monotonic_ns(),
                wall=time.time_ns(),
                slot=grant.slot,
                worker=self._role.name,
            )
            self._inside += 1
            try:
                self._trap.passed("block.start")
                await asyncio.sleep(rng.uniform(0, self._role.longest))
                self._trap.passed("block.end")
            finally:
                self._inside -= 1
            self._wishes.write(job=grant.sequence, used=True)

    async def _change_mind(self, grant: Grant, rng: random.Random) -> None:
        """Go away in line, or at the moment of the grant, or right after it."""
        entering = asyncio.create_task(grant.__aenter__())
        while not getattr(grant, "sequence", 0) and not entering.done():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
        await asyncio.wait([entering], timeout=rng.uniform(0, 0.1))
        self._wishes.write(job=getattr(grant, "sequence", 0), used=False)
        entering.cancel()
        await asyncio.wait([entering])
        if not entering.cancelled():
            entering.result().settle(Usage(0, 0, 0))


def is_of_callers(tenant: str) -> bool:
    """Whether this tenant has no jobs."""
    return tenant.startswith("c")


def is_forgotten(tenant: str) -> bool:
    """Whether somebody forgets this tenant now and then."""
    return tenant.startswith("f")
