"""Playing a trace to a row: on the virtual clock, or in real time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from benchmarks.degradation.account import Account, Offer
from benchmarks.degradation.journal import Journal, Outcome
from benchmarks.degradation.rows import Refusal, Row, Setting, TooLate
from benchmarks.degradation.trace import Prompt, Trace
from benchmarks.measure import NS
from scheduler import UpstreamError
from scheduler.testing import VirtualClock, run_virtual

DEADLINE_S = 60.0
"""Seconds from submit to reply after which an answer is late."""


def counted_from_now(read: Callable[[], int]) -> Callable[[], int]:
    """A clock that starts at 0."""
    start = read()
    return lambda: read() - start


async def one(row: Row, prompt: Prompt, journal: Journal) -> None:
    """One caller: asks once, and does not come back."""
    journal.submitted(prompt)
    try:
        await row.serve(prompt)
    except Refusal:
        journal.ended(prompt, Outcome.REFUSED)
    except TooLate:
        journal.ended(prompt, Outcome.LATE)
    except UpstreamError:
        journal.ended(prompt, Outcome.FAILED)
    else:
        journal.ended(prompt, Outcome.ANSWERED)


async def play(
    kind: type[Row], prompts: Sequence[Prompt], offer: Offer, tenants: int, seed: int, real: bool = False
) -> Journal:
    """Play prompts to a row with an account of its own, until every caller has its answer or its error."""
    clock = None if real else VirtualClock()
    now = counted_from_now(time.monotonic_ns if clock is None else clock.now)
    journal = Journal(now)
    setting = Setting(offer, tenants, DEADLINE_S, seed, now, clock)
    async with kind(setting, Account(offer, now, journal), journal) as row, asyncio.TaskGroup() as callers:
        for prompt in prompts:
            delay = prompt.arrival - now()
            if delay > 0:
                await asyncio.sleep(delay / NS)
            callers.create_task(one(row, prompt, journal))
    return journal


async def play_alone(kind: type[Row], trace: Trace, offer: Offer, tenants: int, seed: int) -> list[Journal]:
    """Play each quiet tenant's prompts as if nobody else had any."""
    alone = (play(kind, trace.of(tenant), offer, tenants, seed) for tenant in trace.quiet)
    return list(await asyncio.gather(*alone))


def virtually(kind: type[Row], trace: Trace, offer: Offer, tenants: int, seed: int) -> Journal:
    """The whole trace, on the virtual clock."""
    return run_virtual(play(kind, trace.prompts, offer, tenants, seed))


def alone(kind: type[Row], trace: Trace, offer: Offer, tenants: int, seed: int) -> list[Journal]:
    """Each quiet tenant alone, on the virtual clock."""
    return run_virtual(play_alone(kind, trace, offer, tenants, seed))


async def play_together(
    kinds: Iterable[type[Row]], trace: Trace, offer: Offer, tenants: int, seed: int
) -> list[Journal]:
    """All rows beside each other in real time, each with an account of its own."""
    rows = (play(kind, trace.prompts, offer, tenants, seed, real=True) for kind in kinds)
    return list(await asyncio.gather(*rows))


def really(kinds: Iterable[type[Row]], trace: Trace, offer: Offer, tenants: int, seed: int) -> list[Journal]:
    """The whole trace on the real clock, which takes as long as the trace and its backlog."""
    return asyncio.run(play_together(kinds, trace, offer, tenants, seed))
