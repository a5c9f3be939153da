"""Eager tasks (Python 3.12): they start where they are made, and the order of the grants still holds."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from scheduler import Job, Quota, Rate
from tests.runtime.harness import KNOWN, Notes, assert_idle, make, now, outcomes, spawn, turns, virtual

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")


def be_eager() -> None:
    """Let the running loop start its tasks at once."""
    if sys.version_info >= (3, 12):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)


@virtual
async def test_the_known_example_with_eager_tasks() -> None:
    """The same times, and those that need not wait have ended before their task is returned."""
    be_eager()
    notes = Notes()
    async with make(notes, KNOWN) as scheduler:
        tasks = [spawn(scheduler.submit("acme", n)) for n in "01234567"]
        assert [task.done() for task in tasks] == [True] * 5 + [False] * 3
        await asyncio.gather(*tasks)
    assert notes.times == [0.0] * 5 + [0.5, 1.0, 1.5]
    assert_idle(scheduler)


@virtual
async def test_an_eager_task_does_not_overtake_a_caller_that_was_granted_before() -> None:
    """A caller, a ticket and a caller, released by one wake-up, resume in that order."""
    be_eager()
    order: list[Any] = []

    async def handler(job: Job) -> None:
        order.append(job.prompt)
        assert scheduler.resuming >= 0

    async with make(handler, Quota(Rate(1, burst=9))) as scheduler:
        scheduler.engine.pause(0, "", 10**9)
        tasks = [spawn(scheduler.submit("acme", "0"))]
        ticket = await scheduler.enqueue("acme", "1")
        tasks.append(spawn(scheduler.submit("acme", "2")))
        tasks.append(spawn((await scheduler.enqueue("acme", "3")).result()))
        newcomers: list[asyncio.Task[Any]] = []
        asyncio.get_running_loop().call_at(
            1.0, lambda: newcomers.append(spawn(scheduler.submit("acme", "4")))
        )
        await asyncio.sleep(1.5)
        await asyncio.gather(*tasks, *newcomers, ticket.result())
    assert order == ["0", "1", "2", "3", "4"]
    assert_idle(scheduler)


@virtual
async def test_enqueue_never_runs_the_handler_in_its_caller() -> None:
    """The ticket is there before the handler begins."""
    be_eager()
    notes = Notes()
    async with make(notes, KNOWN) as scheduler:
        ticket = await scheduler.enqueue("acme", "x")
        assert (notes.order, ticket.state) == ([], "running")
        assert ticket.cancel()
        await outcomes(spawn(ticket.result()))
        other = await scheduler.enqueue("acme", "y")
        for task in asyncio.all_tasks():
            if task.get_name().startswith("job "):
                task.cancel()  # in the step it was made to wait
        await outcomes(spawn(other.result()))
        await turns(2)
        assert_idle(scheduler)
    assert (notes.order, now()) == ([], 0.0)
