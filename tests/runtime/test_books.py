"""Random traffic of every kind: the books balance, whatever happens."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import Cost, ErrRateLimited, Job, Policy, Quota, QuotaExceeded, Rate, Retry, Scheduler, Ticket
from tests.runtime.harness import assert_idle, make, outcomes, spawn, turns, virtual

GATES = {"x": Quota(Rate(5, burst=3), concurrency=2), "y": Quota(input_tokens=Rate(100, burst=100))}
QUOTAS = [
    Quota(Rate(2, burst=4), input_tokens=Rate(50, burst=60), concurrency=2),
    Quota(Rate(1, burst=2)),
    Quota(concurrency=1, weight=3.0),
]

options = st.fixed_dictionaries(
    {"gate": st.sampled_from(["x", "x", "y"])},
    optional={
        "session": st.sampled_from("st"),
        "timeout": st.sampled_from([0.3, 1.0, 4.0]),
        "priority": st.sampled_from([0.5, 5]),
        "policy": st.sampled_from([Policy.strict(), Policy(max_queue=2), Policy(max_wait=1.0)]),
        "cost": st.builds(Cost, st.integers(0, 4), st.integers(0, 50)),
    },
)
traces = st.lists(
    st.tuples(
        st.sampled_from(["submit", "enqueue", "admit", "cancel", "sleep", "quota", "pause"]),
        st.integers(0, 30),
        options,
    ),
    max_size=40,
)


async def handler(job: Job) -> str:
    """Take time, ask for retries and fail, by number."""
    number = int(str(job.prompt))
    if number % 5 == 1:
        await asyncio.sleep(0.7)
    if number % 7 == 2 and job.tries < 3:
        raise Retry(0.4, refused=number % 2 == 0, pause_gate=number % 3 == 0)
    if number % 11 == 3:
        raise LookupError
    return f"{number}"


class Traffic:
    """One random run."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.calls: list[tuple[asyncio.Task[Any], Ticket | None]] = []

    async def block(self, number: int, tenant: str, given: dict[str, Any]) -> str:
        """Hold a grant for a while."""
        async with self.scheduler.admit(tenant, **given):
            await asyncio.sleep(0.2)
        return f"{number}"

    async def join(self, what: str, tenant: str, given: dict[str, Any]) -> None:
        """Come in by one of three ways."""
        number, ticket = len(self.calls), None
        if what == "submit":
            task = spawn(self.scheduler.submit(tenant, f"{number}", **given))
        elif what == "admit":
            given = {name: value for name, value in given.items() if name != "session"}
            task = spawn(self.block(number, tenant, given))
        else:
            try:
                ticket = await self.scheduler.enqueue(tenant, f"{number}", **given)
            except (ErrRateLimited, QuotaExceeded):
                return
            task = spawn(ticket.result())
        self.calls.append((task, ticket))

    async def step(self, what: str, number: int, given: dict[str, Any]) -> None:
        """Do one thing."""
        scheduler, tenant = self.scheduler, "ab"[number % 2]
        if what == "sleep":
            await asyncio.sleep(number / 10)
        elif what == "quota":
            await scheduler.set_quota(tenant, QUOTAS[number % 3])
        elif what == "pause":
            now = scheduler._now()
            scheduler.engine.pause(now, given["gate"], now + number * 10**8)
            scheduler.changed()
        elif what == "cancel":
            for task, ticket in self.calls[number : number + 1]:
                (ticket or task).cancel()
        else:
            await self.join(what, tenant, given)
        assert scheduler.resuming >= 0
        assert scheduler.engine.root.running <= 3


@settings(max_examples=150)
@given(traces, st.booleans())
def test_the_books_balance_whatever_happens(
    trace: list[tuple[str, int, dict[str, Any]]], drain: bool
) -> None:
    """Sessions, gates, priorities, retries, timeouts, changes: one outcome each, and nothing left behind."""

    @virtual
    async def scenario() -> None:
        quotas = {"a": QUOTAS[0], "b": QUOTAS[1]}
        async with make(handler, quotas, gates=GATES, max_running=3, run_timeout=2) as scheduler:
            traffic = Traffic(scheduler)
            for step in trace:
                await traffic.step(*step)
            if not drain:
                await scheduler.aclose(drain=False)
        for number, result in enumerate(await outcomes(*(task for task, _ in traffic.calls))):
            assert result == f"{number}" or isinstance(result, BaseException)
            assert not isinstance(result, AssertionError), result
        await turns(3)
        assert_idle(scheduler)

    scenario()
