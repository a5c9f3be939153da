"""What a ticket expects behind a gate that others use, against what it then waited: how far off it is."""

from __future__ import annotations

import asyncio
import random
from typing import NamedTuple

from scheduler import Job, Policy, Quota, Rate, Scheduler
from scheduler.testing import VirtualClock, run_virtual

SEED = 11


class Told(NamedTuple):
    """Seconds that a job was expected to wait, and waited."""

    expected: float
    waited: float


async def trace(load: float, tenants: int = 12, seconds: float = 600.0) -> list[Told]:
    """Prompts of tenants of different size, to one gate of two calls a second, at a load of its rate."""
    draw = random.Random(SEED)
    waited: dict[str, float] = {}

    async def note(job: Job) -> None:
        waited[job.id] = job.waited

    expected: dict[str, float] = {}
    policy = Policy(max_wait=None, max_queue=100_000)
    gate = Quota(Rate(2, burst=4))
    async with Scheduler(note, gates=gate, policy=policy, clock=VirtualClock()) as scheduler:
        weights = [1 / (rank + 1) for rank in range(tenants)]
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(draw.expovariate(2 * load))
            (rank,) = draw.choices(range(tenants), weights)
            ticket = await scheduler.enqueue(f"tenant {rank}", "x")
            expected[ticket.id] = ticket.wait if ticket.state == "running" else ticket.expected
    return [Told(expected[job], waited[job]) for job in expected]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def report(load: float) -> dict[str, float]:
    """Percentiles of the error in seconds, of all, and of expected over waited, of those who waited."""
    told = run_virtual(trace(load))
    errors = [abs(one.expected - one.waited) for one in told]
    ratios = [one.expected / one.waited for one in told if one.waited > 1]
    found = {f"p{share}": percentile(errors, share / 100) for share in (50, 90, 99)}
    found |= {f"ratio p{share}": percentile(ratios, share / 100) for share in (10, 50, 90)}
    print(f"load {load:.0%}:", {name: round(value, 2) for name, value in found.items()})
    return found


def test_where_there_is_room_it_is_nearly_right() -> None:
    """At 80 % of the gate's rate: half of all jobs to a tenth of a second, nearly all to a call or two."""
    found = report(0.8)
    assert found["p50"] <= 0.1
    assert found["p90"] <= 1.0
    assert found["p99"] <= 3.0


def test_where_there_is_none_it_is_the_right_size() -> None:
    """At 150 %, with lines that grow for ten minutes: others come and leave, which nobody can foresee."""
    found = report(1.5)
    assert 0.5 <= found["ratio p50"] <= 1.5
    assert found["ratio p10"] >= 0.2
    assert found["ratio p90"] <= 2.5
