"""The PostgreSQL side of a script in which some offers are callers that run their own work, and not jobs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scheduler.core.policy import Overload
from scheduler.core.quota import ONE
from scheduler.stores.postgres import claiming, settling
from scheduler.stores.postgres.claiming import Claimed
from scheduler.stores.values import DONE, Claim, Ended, Holder, Request
from tests.conformance.record import Quotas, Record, compare
from tests.conformance.sides import in_memory, to_the_end
from tests.conformance.stored import Stored, opened
from tests.core.play import PATIENT, START, Op

HOME = "web"
LEASE = 10**18

NEW = """
select j.id, j.tenant, j.slot, j.arrival, j.promised, j.home is not null
from waitline.job as j
left join waitline.job as run on run.id = j.holder
where j.state = 1
order by
    j.slot, coalesce(run.arrival - run.head_start, j.arrival - j.head_start), coalesce(j.holder, j.id),
    coalesce(j.call, 0)
"""


@dataclass
class WithCallers(Stored):
    """A store with workers and the process of the callers, which take turns at claiming first, or race."""

    is_caller: Callable[[int], bool] = bool
    taken: dict[int, Claim] = field(default_factory=dict)
    turns: int = 0
    holders: dict[int, int] = field(default_factory=dict)
    """Of each continuation: its run."""
    calls: Counter[int] = field(default_factory=Counter)

    def request(self, op: Op) -> Request:
        found = super().request(op)
        if op.kind == "chain":
            run = self.holders[len(self.ids)]
            holder = Holder(self.running[run].id, self.running[run].tries, self.calls[run])
            return found._replace(prompt=None, home=HOME, lease=LEASE, holder=holder)
        if not self.is_caller(len(self.ids)):
            return found
        return found._replace(prompt=None, home=HOME, lease=LEASE)

    async def claims(self) -> Sequence[Claimed | None]:
        self.turns += 1
        names = [f"worker {number}" for number in range(self.claimers)]
        claims = [self.store.claim(name, self.slots) for name in names]
        claims.insert(0 if self.turns % 2 else len(claims), self.claim_callers())
        found = await asyncio.gather(*claims) if self.claimers > 1 else [await claim for claim in claims]
        taken = {claim.id: claim for claimed in found if claimed is not None for claim in claimed.claims}
        for row in await self.store.rows(NEW):
            number, tenant, slot = int(str(row[0])), str(row[1]), int(str(row[2]))
            job = self.ids.index(number)
            if job in self.running:
                assert number not in taken, f"job {job} was granted twice"
                continue
            claim = taken.get(number) or self.claim_of(row)
            assert claim.slot == slot
            self.running[job] = claim
            self.kept.grants[tenant].append((job, slot - START))
        return found

    def claim_of(self, row: Sequence[object]) -> Claim:
        """A caller that was granted, by whomever, as if it was a job."""
        number, tenant, slot, arrival, promised, ours = row
        assert ours, f"job {number} runs and no worker has it"
        return Claim(
            id=int(str(number)),
            tenant=str(tenant),
            prompt="",
            session=None,
            cost=ONE,
            attempt=1,
            tries=1,
            arrival=int(str(arrival)),
            promised=int(str(promised)),
            slot=int(str(slot)),
            deadline=None,
            lease=LEASE,
        )

    async def claim_callers(self) -> Claimed | None:
        """Claim as a process without a handler does."""
        async with self.store._connections.transaction() as connection:
            return await claiming.claim_callers(connection, HOME, list(self.quotas), self.store.now, LEASE)

    async def chain(self, op: Op) -> None:
        """Ask for a continuation of a job that runs."""
        run = op.pick % len(self.ids) if self.ids else 0
        if run in self.running and run not in self.holders:
            self.holders[len(self.ids)] = run
            self.calls[run] += 1
            await self.offer(op._replace(tenant=self.running[run].tenant, policy=PATIENT))

    async def settle(self, op: Op) -> None:
        await self.end_calls_of(op)
        await super().settle(op)

    async def retry(self, op: Op) -> None:
        if self.ids and op.pick % len(self.ids) in self.holders:
            return
        await self.end_calls_of(op)
        await super().retry(op)

    async def withdraw(self, op: Op) -> None:
        """Take a caller back as its process does, whether it waits or was just granted."""
        await self.end_calls_of(op)
        number = op.pick % len(self.ids) if self.ids else 0
        if self.ids and (self.is_caller(number) or number in self.holders):
            await self.give_back(number)
        else:
            await super().withdraw(op)

    async def give_back(self, number: int) -> None:
        self.running.pop(number, None)
        if self.ids[number] is None:
            return
        found = await self.store.rows(f"select id, tenant from waitline.job where id = {self.ids[number]}")
        async with self.store._connections.transaction() as connection:
            await settling.give_back(connection, {int(str(row[0])): str(row[1]) for row in found})

    async def end_calls_of(self, op: Op) -> None:
        """Withdraw or settle the continuations of a job first, in the order in which they came."""
        job = op.pick % len(self.ids) if self.ids else 0
        for number in [number for number, run in self.holders.items() if run == job]:
            claim = self.running.pop(number, None)
            if claim is not None:
                assert await self.store.settle(Ended(claim.id, claim.tenant, claim.tries, DONE, result="1"))
            else:
                await self.give_back(number)
            await self.pump()


async def same_with_callers(
    dsn: str,
    quotas: Quotas,
    ops: Sequence[Op],
    is_caller: Callable[[int], bool],
    *,
    late: int = 0,
    slots: int = 100,
    claimers: int = 1,
    overload: Overload | None = None,
) -> Record:
    """Play a script to the end on both sides; in memory a caller is an offer like any other."""
    script = to_the_end(ops)
    expected = in_memory(quotas, script, overload=overload)
    async with opened(dsn, connections=claimers + 1, short=overload is not None) as store:
        await store.hearing.declare({}, overload)
        stored = WithCallers(store, quotas, late, claimers, slots, is_caller=is_caller)
        found = await (await stored.run(script)).record()
    found.overtaken = expected.overtaken  # nothing is kept of callers that are over
    if overload is not None:  # of one slot, they were looked up in the order of their keys
        expected.sort_ties()
        found.sort_ties()
    compare(expected, found, quotas, ops)
    return found
