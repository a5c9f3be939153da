"""Random traffic against a simple model: exact starts, nobody lost, and every outcome delivered once."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import Cost, Job, JobFailed, Policy, Quota, Rate, Scheduler, Ticket
from scheduler.core.quota import NS
from tests.runtime.harness import assert_idle, make, outcomes, spawn, turns, virtual

RATES = [Rate(2, burst=5), Rate(7, per=3, burst=2), Rate(1, per=Fraction(1, 3)), Rate(9, per=11, burst=4)]


@dataclass
class Line:
    """The model of a tenant: a bucket and a list, moved on in exact fractions of a second."""

    rate: Rate
    level: Fraction
    time: Fraction = Fraction(0)
    waiting: list[tuple[int, int]] = field(default_factory=list)
    starts: dict[int, int] = field(default_factory=dict)

    def advance(self, now: Fraction) -> None:
        """Start whoever can by `now`, each at the very moment its permits are there."""
        while self.waiting:
            number, cost = self.waiting[0]
            ready = self.time + max(Fraction(0), (cost - self.level) / self.rate.per_second)
            if math.ceil(ready * NS) > now * NS:
                break
            self.refill(ready)
            self.level -= cost
            self.starts[number] = math.ceil(ready * NS)
            del self.waiting[0]
        if now > self.time:
            self.refill(now)

    def refill(self, until: Fraction) -> None:
        """Let time pass."""
        more = (until - self.time) * self.rate.per_second
        self.level, self.time = min(Fraction(self.rate.burst or 1), self.level + more), until


class Traffic:
    """Runs the scheduler and the model side by side."""

    def __init__(self, rates: dict[str, Rate]) -> None:
        self.lines = {name: Line(rate, Fraction(rate.burst or 1)) for name, rate in rates.items()}
        self.jobs: list[tuple[str, Ticket | None, asyncio.Task[Any]]] = []
        self.starts: dict[int, int] = {}
        self.cancelled: set[int] = set()

    def now(self) -> int:
        """Nanoseconds of the running loop."""
        return asyncio.get_running_loop().time_ns()  # type: ignore[attr-defined, no-any-return]

    async def handler(self, job: Job) -> int:
        """Note the start."""
        number = int(str(job.prompt))
        self.starts[number] = self.now()
        return number

    async def step(self, scheduler: Scheduler, what: str, where: Any, cost: int) -> None:
        """Do one thing, in both."""
        await turns(4)
        for line in self.lines.values():
            line.advance(Fraction(self.now(), NS))
        if what == "sleep":
            await asyncio.sleep(where / 1000)
        elif what == "cancel":
            self.cancel(where)
        elif cost <= (self.lines[where].rate.burst or 1):
            self.lines[where].waiting.append((len(self.jobs), cost))
            if what == "enqueue":
                ticket = await scheduler.enqueue(where, f"{len(self.jobs)}", cost=Cost(cost))
                self.jobs.append((where, ticket, spawn(ticket.result())))
            else:
                call = scheduler.submit(where, f"{len(self.jobs)}", cost=Cost(cost))
                self.jobs.append((where, None, spawn(call)))

    def cancel(self, number: int) -> None:
        """Withdraw a job that waits; the two agree on whether it does."""
        if number >= len(self.jobs):
            return
        tenant, ticket, task = self.jobs[number]
        waits = [entry for entry in self.lines[tenant].waiting if entry[0] == number]
        assert bool(waits) is (number not in self.starts and number not in self.cancelled)
        if waits:
            self.lines[tenant].waiting.remove(waits[0])
            self.cancelled.add(number)
            assert ticket.cancel() if ticket else task.cancel()


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["submit", "enqueue"]), st.sampled_from("ab"), st.integers(1, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("sleep"), st.sampled_from([1, 10, 250, 500, 1000, 3000]), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=120)
@given(steps, st.sampled_from(RATES), st.sampled_from(RATES))
def test_starts_are_those_of_the_model(trace: list[tuple[str, Any, int]], first: Rate, second: Rate) -> None:
    """Submits, tickets, cancellations and time in any order: every start to the nanosecond, nobody lost."""

    @virtual
    async def scenario() -> None:
        traffic = Traffic({"a": first, "b": second})
        quotas = {"a": Quota(first), "b": Quota(second)}
        async with make(traffic.handler, quotas, policy=Policy(max_wait=None)) as scheduler:
            for step in trace:
                await traffic.step(scheduler, *step)
            await turns(4)
        for line in traffic.lines.values():
            line.advance(Fraction(10**6))
        assert traffic.starts == traffic.lines["a"].starts | traffic.lines["b"].starts
        results = await outcomes(*(task for _, _, task in traffic.jobs))
        for number, result in enumerate(results):
            gone = isinstance(result, asyncio.CancelledError | JobFailed)
            assert gone if number in traffic.cancelled else result == number
        statistics = await scheduler.statistics()
        assert statistics.cancelled == len(traffic.cancelled)
        assert statistics.done == len(traffic.jobs) - statistics.cancelled
        assert_idle(scheduler)

    scenario()
