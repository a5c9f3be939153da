"""Public use as a type checker sees it: `make check` runs mypy over this file, the tests run it."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, assert_type

import pytest

from scheduler import (
    Cost,
    DeadlineExceeded,
    ErrRateLimited,
    Grant,
    Handler,
    Job,
    JobFailed,
    Policy,
    Quota,
    QuotaExceeded,
    Quote,
    Rate,
    Retry,
    Scheduler,
    SchedulerClosed,
    SchedulerError,
    Statistics,
    Ticket,
    UpstreamError,
    Usage,
)
from scheduler.testing.virtual import VirtualClock, run_virtual


async def handler(job: Job) -> str:
    """See everything that a handler may see."""
    assert_type(job.id, str)
    assert_type(job.tenant, str)
    assert_type(job.prompt, str | list[dict[str, Any]])
    assert_type(job.session, str | None)
    assert_type(job.cost, Cost)
    assert_type(job.attempt, int)
    assert_type(job.deadline, float | None)
    assert_type(job.waited, float)
    job.settle(Usage(1, 20, 30))
    if job.prompt == "again" and job.attempt == 1:
        raise Retry(after=0.5, pause_gate=False, refused=False)
    return f"{job.prompt}!"


named: Handler = handler


class Message:
    """The least that a hook needs of a message."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant


async def use(scheduler: Scheduler) -> None:
    """Call everything that a caller may call."""
    await scheduler.set_quota("acme", Quota(Rate(5, burst=9), output_tokens=Rate.per_hour(10**6), weight=2.5))
    text: str = await scheduler.submit("acme", "hi", timeout=5, priority=1, cost=Cost(1, 10), gate="haiku")
    assert text == "hi!"
    blocks = [{"type": "text", "text": "hi"}]
    ticket = await scheduler.enqueue("acme", blocks, session="s", policy=Policy(max_wait=None), gate="opus")
    assert_type(ticket, Ticket)
    assert_type(ticket.id, str)
    assert_type(ticket.position, int)
    assert_type(ticket.wait, float)
    assert_type(ticket.expected, float)
    assert {str(cause) for cause in ticket.delayed_by} == set()
    assert_type(ticket.cancel(), bool)
    again = await scheduler.enqueue("acme", "again", gate="opus")
    assert await again.result() == "again!"
    quote = await scheduler.quote("acme", gate="opus")
    assert_type(quote, Quote)
    assert_type(quote.wait, float)
    async with scheduler.admit("acme", cost=Cost(), gate="haiku") as grant:
        assert_type(grant, Grant)
        assert_type(grant.waited, float)
        grant.settle(Usage())
    statistics = await scheduler.statistics()
    assert_type(statistics, Statistics)
    assert statistics.done == 2
    assert_type((await scheduler.statistics("acme")).levels, Mapping[str, float])


async def hooked() -> None:
    """Use the hook and its refusal."""
    async with Scheduler(
        quotas={"acme": Quota(Rate(1))}, policy=Policy.strict(), clock=VirtualClock()
    ) as scheduler:
        grant = await scheduler.on_before_message(Message("acme"))
        assert_type(grant, Grant | None)
        with pytest.raises(ErrRateLimited) as caught:
            await scheduler.on_before_message(Message("acme"))
        assert_type(caught.value.tenant, str)
        assert_type(caught.value.reason, str)
        assert_type(caught.value.retry_after, float)
        assert caught.value.reason == "strict"


def kinds(error: SchedulerError) -> object:
    """Tell the errors apart by type, and reach their attributes."""
    match error:
        case QuotaExceeded():
            return assert_type(error.limit, str), assert_type(error.cost, int), assert_type(error.burst, int)
        case DeadlineExceeded():
            return assert_type(error.which, str), assert_type(error.seconds, float)
        case JobFailed():
            return assert_type(error.kind, str), assert_type(error.attempts, int)
        case UpstreamError():
            return assert_type(error.kind, str), assert_type(error.status, int | None)
        case SchedulerClosed():
            return None
    return error


def test_public_use_runs_as_it_is_typed() -> None:
    """Every public call, once, with the types that the checker was told."""

    async def main() -> None:
        gates = {"haiku": Quota(Rate.per_minute(600, burst=10)), "opus": Quota(concurrency=4)}
        async with Scheduler(
            named,
            quotas=lambda tenant: Quota(Rate(Fraction(7, 2), burst=5)),
            gates=gates,
            policy={"acme": Policy(max_wait=60, max_queue=10)},
            max_waiting=100,
            max_running=8,
            max_attempts=3,
            run_timeout=30,
            clock=VirtualClock(),
        ) as scheduler:
            await use(scheduler)
            await scheduler.aclose(drain=True)
        await hooked()

    run_virtual(main())


def test_errors_are_told_apart_by_type() -> None:
    """With their attributes."""
    assert kinds(QuotaExceeded("acme", "requests", 2, 1)) == ("requests", 2, 1)
    assert kinds(DeadlineExceeded("acme", "timeout", 1.0)) == ("timeout", 1.0)
    assert kinds(JobFailed("acme", "cancelled", 1)) == ("cancelled", 1)
    assert kinds(UpstreamError("refusal")) == ("refusal", None)
    assert kinds(SchedulerClosed()) is None
