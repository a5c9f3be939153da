"""What the tests of the runtime share: virtual time, a handler that takes notes, and the books at the end."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

from scheduler import Job, Quota, Rate, Scheduler
from scheduler.core.quota import NS
from scheduler.testing.virtual import VirtualClock, run_virtual

P = ParamSpec("P")

KNOWN = Quota(Rate(2, burst=5))
"""The example everybody knows: two a second, five at once."""


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test in virtual time; whatever the loop complains about fails it."""

    async def watched(*args: P.args, **kwargs: P.kwargs) -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(100_000):  # virtual seconds: a dead end fails instead of idling on
            await test(*args, **kwargs)
        await turns(3)
        assert complaints == []

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_virtual(watched(*args, **kwargs))

    return run


def now() -> float:
    """Seconds of the running loop."""
    return asyncio.get_running_loop().time()


async def turns(count: int) -> None:
    """Let the loop turn a few times without time passing."""
    for _ in range(count):
        await asyncio.sleep(0)


class Notes:
    """A handler that notes who started when, then takes `takes` seconds (or, if None, does not suspend)."""

    def __init__(self, takes: float | None = None) -> None:
        self.takes = takes
        self.starts: list[tuple[Any, float]] = []
        self.ended: list[Any] = []

    async def __call__(self, job: Job) -> str:
        self.starts.append((job.prompt, now()))
        try:
            if self.takes is not None:
                await asyncio.sleep(self.takes)
        finally:
            self.ended.append(job.prompt)
        return f"answer to {job.prompt}"

    @property
    def order(self) -> list[Any]:
        """The prompts in the order in which they started."""
        return [prompt for prompt, _ in self.starts]

    @property
    def times(self) -> list[float]:
        """The times at which they did."""
        return [time for _, time in self.starts]


def make(handler: Any, quotas: Any = KNOWN, **settings: Any) -> Scheduler:
    """A scheduler in virtual time."""
    return Scheduler(handler, quotas=quotas, clock=VirtualClock(), **settings)


def spawn(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task of the test's own."""
    return asyncio.get_running_loop().create_task(work)


async def outcomes(*tasks: asyncio.Task[Any]) -> list[Any]:
    """Results and exceptions, in order."""
    return await asyncio.gather(*tasks, return_exceptions=True)


def level(scheduler: Scheduler, tenant: str = "acme", name: str = "requests") -> float:
    """Permits in a tenant's bucket, which must have seen the tenant."""
    account = scheduler.engine.tenants[tenant]
    index = ("requests", "input_tokens", "output_tokens").index(name)
    scale, zero = (
        account.shape.scales[account.shape.limits.index(index)],
        account.zeros[account.shape.limits.index(index)],
    )
    return scale.level(zero, round(now() * NS)) / scale.unit


def assert_idle(scheduler: Scheduler) -> None:
    """Nothing waits, runs or holds anything: every counter is back where it began."""
    engine = scheduler.engine
    assert (engine.waiting, engine.root.running, scheduler.resuming) == (0, 0, 0)
    assert not engine.moved
    assert not engine.sessions
    assert not scheduler._runs
    for tenant in engine.tenants.values():
        assert (tenant.running, tenant.lines) == (0, {}), tenant.name
    for gate in engine.gates.values():
        assert (gate.running, gate.backlogged, any(gate.backlog), gate.crowd) == (0, False, False, 0), (
            gate.name
        )
