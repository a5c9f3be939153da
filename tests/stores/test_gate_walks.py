"""Walks: whatever is done at gates, with ladders, in whatever order, the rows count what there is."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from scheduler import (
    Answer,
    Cost,
    ErrRateLimited,
    Policy,
    Quota,
    QuotaExceeded,
    Rate,
    Rung,
    Signal,
    Upstream,
    Usage,
)
from scheduler.core.quota import NS
from scheduler.stores.values import DONE, FAILED, Again, Claim, Ended, Heard, Request
from tests.conformance.stored import WRONG, WRONG_AT_GATES, VirtualStore, opened
from tests.core.play import MS

BACKLOG = """
select gate, sum(cost[1])::bigint, sum(cost[2])::bigint, sum(cost[3])::bigint
from waitline.job where turn is not null group by gate
"""
LADDER = [Rung(0.5, gate="small"), Rung(1, max_tokens=5), Rung(2, defer="batch")]
LARGE = [
    Quota(Rate(1, burst=1)),
    Quota(concurrency=1),
    Quota(Rate(1, burst=3), output_tokens=Rate(10, burst=40), concurrency=2),
]
QUOTAS = [Quota(), Quota(Rate(1, burst=2), output_tokens=Rate(50, burst=60)), Quota(concurrency=2)]
SIGNALS = [
    Signal(Answer.RATE_LIMITED, 2.0),
    Signal(Answer.SPEND_LIMIT),
    Signal(Answer.ACCEPTED),
    Signal(Answer.OVERLOADED),
]
STEPS = ["submit"] * 6 + ["claim", "defer", "settle", "again", "again", "stop", "cancel", "move", "move"]
STEPS += ["hear", "resume", "revive", "set_quota"]


@dataclass
class Walk:
    """One walk: what is drawn comes from `draw`."""

    store: VirtualStore
    draw: random.Random
    quota: Quota
    ids: list[int] = field(default_factory=list)
    running: dict[int, Claim] = field(default_factory=dict)

    async def submit(self) -> None:
        draw = self.draw
        ladder = draw.choice([(), LADDER, LADDER[:1], LADDER[1:], LADDER[2:]])
        wishes: dict[str, Any] = {
            "gate": draw.choice(["large", "large", "small"]),
            "session": draw.choice([None, None, "s"]),
            "timeout": draw.choice([None, None, 4 * NS]),
            "head_start": draw.choice([0, 0, NS]),
        }
        policy, cost = (
            Policy(draw.choice([None, None, 0, 3]), ladder=ladder),
            Cost(1, 0, draw.choice([0, 20])),
        )
        request = Request(draw.choice("ab"), '"…"', self.quota, policy, cost, most_deferred=3, **wishes)
        with suppress(ErrRateLimited, QuotaExceeded):
            self.ids.append((await self.store.submit(request)).id)

    async def claim(self) -> bool:
        claimed = await self.store.claim("w", self.draw.choice([1, 5]))
        self.running |= {one.id: one for one in ([] if claimed is None else claimed.claims)}
        return claimed is not None and bool(claimed.claims or claimed.more)

    async def defer(self) -> None:
        found = await self.store.claim_deferred("w", self.draw.choice([1, 3]))
        self.running |= {one.id: one for one in found}

    def taken(self) -> Claim | None:
        return self.running.pop(self.draw.choice(list(self.running))) if self.running else None

    async def settle(self) -> None:
        one, usage = self.taken(), self.draw.choice([None, Usage(1, 0, 7), Usage(0, 0, 0)])
        if one is not None:
            state = self.draw.choice([DONE, FAILED])
            await self.store.settle(Ended(one.id, one.tenant, one.tries, state, "1", usage=usage))

    async def again(self) -> None:
        one, usage = self.taken(), self.draw.choice([None, Usage(1, 0, 7), Usage(0, 0, 0)])
        if one is not None:
            after, refused = self.draw.choice([0, NS]), self.draw.random() < 0.5
            await self.store.settle(Again(one.id, one.tenant, one.tries, after, refused, True, usage))

    async def stop(self) -> None:
        one = self.taken()
        if one is not None:
            await self.store.settle(Again(one.id, one.tenant, one.tries, counted=False))

    async def cancel(self) -> None:
        if self.ids:
            job = self.draw.choice(self.ids)
            ((tenant,),) = await self.store.rows(f"select tenant from waitline.job where id = {job}")
            await self.store.cancel(job, str(tenant))

    async def revive(self) -> None:
        if self.ids:
            await self.store.revive(self.draw.choice(self.ids))

    async def move(self) -> None:
        await self.store.move(self.store.now + self.draw.choice([10 * MS, NS, 3 * NS]))
        await self.store.rescue(5)

    async def hear(self) -> None:
        if self.running:
            one = self.running[self.draw.choice(list(self.running))]
            heard = Heard(one.gate, one.id, one.tenant, one.cost, one.slot, self.draw.choice(SIGNALS))
            await self.store.hearing._write([heard])

    async def resume(self) -> None:
        await self.store.hearing.resume(None)

    async def set_quota(self) -> None:
        quota = self.draw.choice([self.quota, Quota(Rate(1, burst=1))])
        await self.store.set_quota(self.draw.choice("ab"), quota, self.quota)

    async def check(self, note: object) -> None:
        assert not await self.store.rows(WRONG), note
        assert not await self.store.rows(WRONG_AT_GATES), note
        gates, _ = await self.store.hearing.see()
        sums = {name: amounts for name, *amounts in await self.store.rows(BACKLOG)}
        for name, (gate, _) in gates.items():
            amounts: Any = sums.get(name, [0, 0, 0])
            units = zip(gate.shape.limits, gate.shape.units, strict=True)
            assert gate.backlog == [amounts[index] * unit for index, unit in units], (note, name)

    async def drain(self) -> None:
        """Everything ends, and no claim goes on without end."""
        await self.resume()
        for turn in range(400):
            for _ in range(300):
                if not await self.claim():
                    break
            else:
                raise AssertionError("claims without end")
            await self.defer()
            while self.running:
                await self.settle()
            await self.check(turn)
            if not await self.store.rows("select id from waitline.job where state < 2"):
                return
            await self.store.move(self.store.now + NS)
            await self.store.rescue(5)
        raise AssertionError(await self.store.rows("select * from waitline.job where state < 2"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(6))
async def test_a_walk_counts_what_there_is_and_ends(dsn: str, seed: int) -> None:
    draw = random.Random(seed)
    async with opened(dsn) as store:
        small = draw.choice([Quota(Rate(2, burst=1)), Quota(concurrency=2)])
        gates = {"large": Upstream(draw.choice(LARGE)), "small": Upstream(small)}
        await store.hearing.declare(gates)
        walk = Walk(store, draw, draw.choice(QUOTAS))
        for number in range(60):
            step = draw.choice(STEPS)
            await getattr(walk, step)()
            await walk.check((seed, number, step))
        await walk.drain()
