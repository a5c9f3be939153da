"""One script, played on the engine in memory and on the PostgreSQL store: they must do the same.

Compared are the answers to all offers, who was granted in which order at which slot, per tenant, and what
became of the jobs that waited in vain. Not compared, as the design leaves it open or a store cannot know it:

- the order in which jobs of different tenants are granted;
- the position of a job while others of its tenant stand outside the line: the store counts those too,
  also in the times of those whom it refuses for lack of a slot;
- the mean holding time of slots: the store always expects the least, so the engine in memory is held to that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from scheduler.core.policy import Overload
from scheduler.core.quota import NS
from scheduler.core.signals import Upstream
from scheduler.stores.postgres.claiming import Claimed
from tests.conformance.memory import Memory
from tests.conformance.processes import Claimer
from tests.conformance.record import Quotas, Record, compare
from tests.conformance.stored import Stored, opened
from tests.core.play import Op

LONG = 10_000 * NS
"""What drains any line that is drained by time alone."""


def to_the_end(ops: Sequence[Op], rounds: int = 2, long: int = LONG) -> list[Op]:
    """A script, and then all that runs ends, and all that waits may go."""
    offers = sum(op.kind in {"offer", "chain"} for op in ops)
    ends = [Op("settle", pick=job) for job in range(offers)]
    return [*ops, *([Op("advance", gap=long), *ends] * rounds), Op("advance", gap=long)]


def in_memory(
    quotas: Quotas,
    ops: Sequence[Op],
    gates: Mapping[str, Upstream] | None = None,
    overload: Overload | None = None,
) -> Record:
    """What the engine in memory does."""
    return Memory.with_quotas(quotas, gates, overload).run(ops).record()


async def same(
    dsn: str,
    quotas: Quotas,
    ops: Sequence[Op],
    *,
    late: int = 0,
    claimers: int = 1,
    slots: int = 100,
    processes: Sequence[Claimer] = (),
    gates: Mapping[str, Upstream] | None = None,
    long: int = LONG,
    ties: bool = False,
    overload: Overload | None = None,
    short: bool = False,
) -> Record:
    """Play a script to the end on both sides; they must do the same. Returns what they did.

    `processes`: those that claim, instead of so many `claimers` in this process. `gates`: that all share.
    `long`: what drains the lines. `ties`: two jobs of a tenant may go in either order in one ns.
    `overload`: what is declared for lines that are late. `short`: claims load as little as they may.
    """
    script = to_the_end(ops, long=long)
    expected = in_memory(quotas, script, gates, overload)
    async with opened(dsn, connections=claimers + 1, short=short) as store:
        await store.hearing.declare(gates or {}, overload)
        stored = Stored(store, quotas, late=late, claimers=len(processes) or claimers, slots=slots)
        if processes:
            workers = {f"worker {number}": process for number, process in enumerate(processes)}

            async def remote(worker: str, now: int, slots: int) -> Claimed | None:
                return await asyncio.to_thread(workers[worker].claim, now, worker, slots)

            stored.remote = remote
        found = await (await stored.run(script)).record()
    if ties:
        expected.sort_ties()
        found.sort_ties()
    compare(expected, found, {**quotas, **(gates or {})}, ops)
    return found
