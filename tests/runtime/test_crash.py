"""What no `except Exception` catches: a job that brings the program down takes nobody with it into a hang."""

from __future__ import annotations

import asyncio

import pytest

from scheduler import Job, Quota, Ticket
from scheduler.testing.virtual import run_virtual
from tests.runtime.harness import assert_idle, make, now, outcomes, spawn, virtual
from tests.runtime.test_closing import refused


class Abort(BaseException):
    """What no `except Exception` catches."""


def test_an_abort_in_a_job_brings_the_scheduler_down_and_nobody_hangs() -> None:
    """A BaseException ends the block; jobs about to start and in line are closed."""

    async def handler(job: Job) -> None:
        await asyncio.sleep(0)
        if job.prompt == "abort":
            raise Abort
        await asyncio.sleep(50)

    @virtual
    async def scenario() -> None:
        scheduler = make(handler, Quota(concurrency=2))
        tickets: list[Ticket] = []

        async def block() -> None:
            async with scheduler:
                for prompt in ("abort", "other", "waits", "waits"):
                    tickets.extend([await scheduler.enqueue("acme", prompt)])
                await asyncio.sleep(100)

        with pytest.raises(BaseExceptionGroup) as group:
            await block()
        assert group.value.subgroup(Abort)
        results = await outcomes(*(spawn(ticket.result()) for ticket in tickets))
        assert refused(results) == [True] * 4
        assert now() == 0.0
        assert_idle(scheduler)

    scenario()


def test_an_exit_in_a_job_exits() -> None:
    """`sys.exit` in a handler ends the program, though other jobs have yet to begin."""

    async def handler(job: Job) -> None:
        raise SystemExit(3)

    async def main() -> None:
        async with make(handler, Quota()) as scheduler:
            for _ in range(3):
                await scheduler.enqueue("acme", "x")
            await asyncio.sleep(100)

    with pytest.raises(SystemExit) as left:
        run_virtual(main())
    assert left.value.code == 3
