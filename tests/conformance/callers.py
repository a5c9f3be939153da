"""The PostgreSQL side of a script in which some offers are callers that run their own work, and not jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from scheduler.core.quota import ONE
from scheduler.stores.postgres import claiming, settling
from scheduler.stores.postgres.claiming import Claimed
from scheduler.stores.values import Claim, Request
from tests.conformance.record import Quotas, Record, compare
from tests.conformance.sides import in_memory, to_the_end
from tests.conformance.stored import Stored, opened
from tests.core.play import START, Op

HOME = "web"
LEASE = 10**18

NEW = """
select id, tenant, slot, arrival, promised, home is not null
from waitline.job
where state = 1
order by slot, arrival - head_start, id
"""


@dataclass
class WithCallers(Stored):
    """A store with workers and the process of the callers, which take turns at claiming first."""

    is_caller: Callable[[int], bool] = bool
    taken: dict[int, Claim] = field(default_factory=dict)
    turns: int = 0

    def request(self, op: Op) -> Request:
        found = super().request(op)
        if not self.is_caller(len(self.ids)):
            return found
        return replace(found, prompt=None, home=HOME, lease=LEASE)

    async def claims(self) -> Sequence[Claimed | None]:
        self.turns += 1
        names = [f"worker {number}" for number in range(self.claimers)]
        found = [await self.claim_callers()] if self.turns % 2 else []
        found += [await self.store.claim(name, self.slots) for name in names]
        found += [] if self.turns % 2 else [await self.claim_callers()]
        claims = {claim.id: claim for claimed in found if claimed is not None for claim in claimed.claims}
        for row in await self.store.rows(NEW):
            number, tenant, slot = int(str(row[0])), str(row[1]), int(str(row[2]))
            job = self.ids.index(number)
            if job in self.running:
                assert number not in claims, f"job {job} was granted twice"
                continue
            claim = claims.get(number) or self.claim_of(row)
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

    async def withdraw(self, op: Op) -> None:
        """Take a caller back as its process does, whether it waits or was just granted."""
        number = self.ids[op.pick % len(self.ids)] if self.ids else None
        if number is None or not self.is_caller(op.pick % len(self.ids)):
            await super().withdraw(op)
            return
        self.running.pop(op.pick % len(self.ids), None)
        found = await self.store.rows(f"select id, tenant from waitline.job where id = {number}")
        async with self.store._connections.transaction() as connection:
            await settling.give_back(connection, {int(str(row[0])): str(row[1]) for row in found})


async def same_with_callers(
    dsn: str,
    quotas: Quotas,
    ops: Sequence[Op],
    is_caller: Callable[[int], bool],
    *,
    late: int = 0,
    slots: int = 100,
) -> Record:
    """Play a script to the end on both sides; in memory a caller is an offer like any other."""
    script = to_the_end(ops)
    expected = in_memory(quotas, script)
    async with opened(dsn) as store:
        stored = WithCallers(store, quotas, late=late, slots=slots, is_caller=is_caller)
        found = await (await stored.run(script)).record()
    compare(expected, found, quotas, ops)
    return found
