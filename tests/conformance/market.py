"""Tenants behind one gate of a store, calls that take a second each, and what everybody got of it."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from scheduler.core.account import Shape, shape_of
from scheduler.core.fairness import fair_cost
from scheduler.core.quota import NS, ONE, Cost, Quota, Usage
from scheduler.core.signals import Upstream
from scheduler.stores.postgres.claiming import Claimed
from scheduler.stores.values import DONE, Claim, Ended, Request
from tests.conformance.processes import Claimer
from tests.conformance.stored import WRONG, WRONG_AT_GATES, VirtualStore, opened
from tests.core.play import PATIENT
from tests.core.shares import Shares

GATE = "x"

LENGTH = NS
"""Nanoseconds of a call."""


@dataclass
class Market:
    """Tenants with nothing but weights. `slots`: jobs that each of the `claimers` takes at a time.

    `late`: nanoseconds by which they notice that something is due. `processes` claim instead, if given.
    """

    store: VirtualStore
    weights: Mapping[str, float]
    shape: Shape
    slots: int = 100
    claimers: int = 1
    late: int = 0
    processes: Sequence[Claimer] = ()
    shares: Shares = field(init=False)
    waiting: Counter[str] = field(default_factory=Counter)
    running: deque[Claim] = field(default_factory=deque)
    real: dict[int, Cost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shares = Shares(self.weights)

    # --- jobs come and go -----------------------------------------------------------------------------------

    async def submit(
        self, tenant: str, count: int, cost: Cost = ONE, real: Cost | None = None, session: str | None = None
    ) -> None:
        """So many jobs of a tenant, with an estimate and with what they will really use."""
        await self.submit_all([(tenant, count, cost, real, session)])

    async def submit_all(self, asked: Sequence[tuple[str, int, Cost, Cost | None, str | None]]) -> None:
        """Jobs of several tenants, that arrive together and by turns."""
        requests = [
            (self._request(tenant, cost, session and f"{session}{number}"), real)
            for number in range(max(count for _, count, *_ in asked))
            for tenant, count, cost, real, session in asked
            if number < count
        ]
        found = await asyncio.gather(*(self.store.submit(request) for request, _ in requests))
        for (request, real), accepted in zip(requests, found, strict=True):
            self.real[accepted.id] = request.cost if real is None else real
            self.waiting[request.tenant] += 1
        await self.claim()
        for tenant, *_ in asked:
            if self.waiting[tenant]:
                self.shares.waits(tenant)

    def _request(self, tenant: str, cost: Cost, session: str | None) -> Request:
        quota = Quota(weight=self.weights[tenant])
        return Request(tenant, '"…"', quota, PATIENT, cost, session=session, gate=GATE)

    async def claim(self) -> int:
        """Claim all that can be claimed now, and note who passed in which order: how many that were."""
        passed: list[Claim] = []
        busy = True
        while busy:
            found = [claimed for claimed in await self._claims() if claimed is not None]
            passed += [claim for claimed in found for claim in claimed.claims]
            busy = any(claimed.claims or claimed.more for claimed in found)
        if self.claimers > 1:  # who was before whom is told by slots
            passed.sort(key=lambda claim: claim.slot)
            assert len({claim.slot for claim in passed}) == len(passed), (
                "a gate for this lets one at a time pass"
            )
        for claim in passed:
            self.waiting[claim.tenant] -= 1
            work = self.work(self.real[claim.id])
            self.shares.served(claim.tenant, work, more=self.waiting[claim.tenant] > 0)
        self.running += passed
        return len(passed)

    async def _claims(self) -> Sequence[Claimed | None]:
        names = [f"worker {number}" for number in range(self.claimers)]
        if not self.processes:
            return await asyncio.gather(*(self.store.claim(name, self.slots) for name in names))
        asked = zip(self.processes, names, strict=True)
        return await asyncio.gather(
            *(asyncio.to_thread(one.claim, self.store.now, name, self.slots) for one, name in asked)
        )

    def work(self, cost: Cost) -> int:
        """What a job costs at the gate, in fair order."""
        return fair_cost(self.shape, self.shape.amounts(cost))

    # --- time passes ----------------------------------------------------------------------------------------

    async def end(self) -> None:
        """End the calls that are over."""
        over = []
        while self.running and self.running[0].slot + LENGTH <= self.store.now:
            over.append(self.running.popleft())
        await asyncio.gather(*(self.store.settle(self._ended(claim)) for claim in over))

    def _ended(self, claim: Claim) -> Ended:
        real = self.real[claim.id]
        usage = None if real == claim.cost else Usage(real.requests, real.input_tokens, real.output_tokens)
        return Ended(claim.id, claim.tenant, claim.tries, DONE, result="1", usage=usage)

    async def run(self, grants: int) -> None:
        """Let time pass until so many jobs more have passed: calls end, and what is due is claimed."""
        left = grants
        while left > 0:
            ends = [self.running[0].slot + LENGTH] if self.running else []
            due = max(self.store.now, await self.store.due()) + self.late
            await self.store.move(max(self.store.now, min([due, *ends])))
            await self.end()
            left -= await self.claim()

    async def tick(self, times: int) -> None:
        """Let seconds pass, in which all that runs ends: a worker that looks once a second."""
        for _ in range(times):
            await self.store.move(self.store.now + LENGTH)
            await self.end()
            await self.claim()

    async def right(self) -> None:
        """What is counted is what there is."""
        for query in (WRONG, WRONG_AT_GATES):
            assert not await self.store.rows(query)


@asynccontextmanager
async def market(
    dsn: str,
    weights: Mapping[str, float],
    gate: Quota,
    *,
    slots: int = 100,
    claimers: int = 1,
    late: int = 0,
    processes: Sequence[Claimer] = (),
) -> AsyncIterator[Market]:
    """Open a market, in which everything that is counted must be there in the end."""
    crew = len(processes) or claimers
    async with opened(dsn, connections=crew + 1) as store:
        await store.hearing.declare({GATE: Upstream(gate)})
        made = Market(store, weights, shape_of(gate), slots, crew, late, processes)
        yield made
        await made.right()
