"""Law 2: the callers' code resumes in the order of the grants, whoever comes in the same turn of the loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import Job, Quota, Rate, Scheduler
from tests.runtime.harness import Notes, assert_idle, make, spawn, turns, virtual

WAYS = ["submit", "enqueue", "admit", "hook"]


class Named:
    """What a hook sees of a message."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant


async def go(scheduler: Scheduler, way: str, name: str, notes: Notes) -> Any:
    """Take a turn in one of the four ways, and note when it came."""
    if way == "submit":
        return await scheduler.submit("acme", name)
    if way == "enqueue":
        return await (await scheduler.enqueue("acme", name)).result()
    if way == "admit":
        async with scheduler.admit("acme"):
            notes.order_of_starts.append(name)  # type: ignore[attr-defined]
        return None
    grant = await scheduler.on_before_message(Named("acme"))
    notes.order_of_starts.append(name)  # type: ignore[attr-defined]
    assert grant is not None
    grant.settle()
    return None


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("newcomer", WAYS)
def test_a_newcomer_in_the_same_turn_does_not_overtake(first: str, second: str, newcomer: str) -> None:
    """Two wait; both are granted by one wake-up, and a third arrives before they could resume."""

    @virtual
    async def scenario() -> None:
        notes = Notes()
        notes.order_of_starts = order = []  # type: ignore[attr-defined]

        async def handler(job: Job) -> None:
            order.append(job.prompt)

        async with make(handler, Quota(Rate(1, burst=3))) as scheduler:
            scheduler.engine.pause(0, "", 10**9)  # everybody waits for the end of a pause, permits to spare
            scheduler._armed = 0  # the wake-up comes from below
            waiting = [
                spawn(go(scheduler, first, "first", notes)),
                spawn(go(scheduler, second, "second", notes)),
            ]
            await turns(2)
            assert scheduler.engine.waiting == 2
            await asyncio.sleep(1.0)
            waiting.append(spawn(go(scheduler, newcomer, "third", notes)))  # its first step comes next,
            scheduler._wake()  # ahead of those that this resumes
            await asyncio.gather(*waiting)
        assert order == ["first", "second", "third"]
        assert_idle(scheduler)

    scenario()


@pytest.mark.parametrize("newcomer", ["submit", "admit", "hook"])
def test_nobody_overtakes_a_newcomer_that_goes_behind(newcomer: str) -> None:
    """Who was granted behind one that is about to resume goes before that one's next call."""

    @virtual
    async def scenario() -> None:
        notes = Notes()
        notes.order_of_starts = order = []  # type: ignore[attr-defined]
        release = asyncio.Event()

        async def handler(job: Job) -> None:
            order.append(job.prompt)
            if str(job.prompt).startswith("hold"):
                await release.wait()

        async with make(handler, Quota(concurrency=2)) as scheduler:
            holders = [spawn(scheduler.submit("acme", f"hold{n}")) for n in range(2)]
            await turns(2)

            async def twice() -> None:
                await scheduler.submit("acme", "waiter")
                await scheduler.submit("acme", "again")

            waiter = spawn(twice())
            await turns(2)
            release.set()
            # Behind the holders, whose slots come free in this very turn, and before the waiter resumes.
            await asyncio.sleep(0)
            await go(scheduler, newcomer, "third", notes)
            await asyncio.gather(*holders, waiter)
        assert order == ["hold0", "hold1", "waiter", "third", "again"]

    scenario()


@virtual
async def test_who_is_granted_later_resumes_later_than_a_newcomer_that_goes_behind() -> None:
    """The step back of a newcomer is one step: a waiter granted after it must not come before it."""
    order: list[str] = []
    async with make(Notes(), Quota(concurrency=2)) as scheduler:
        holders = [scheduler.admit("acme") for _ in range(2)]
        for holder in holders:
            await holder.__aenter__()

        async def take(name: str, keep: bool = False) -> None:
            async with scheduler.admit("acme"):
                order.append(name)
                if keep:
                    await asyncio.sleep(1)

        tasks = [spawn(take("waiter"))]
        await turns(2)
        for holder in holders:  # one slot for the waiter, one free
            holder.settle()
        newcomer = take("newcomer", keep=True)
        newcomer.send(None)  # offered and granted here and now, behind the waiter
        newcomer.close()
        assert scheduler.resuming == 1
        tasks += [spawn(take("newcomer", keep=True)), spawn(take("later"))]
        await asyncio.gather(*tasks)
    assert order == ["waiter", "newcomer", "later"]
    assert_idle(scheduler)


@virtual
async def test_fifo_holds_through_a_large_job() -> None:
    """Small jobs behind a large one wait for it, though permits for them are there."""
    from scheduler import Cost

    notes = Notes()
    async with make(notes, Quota(Rate(1, burst=4))) as scheduler:
        await scheduler.submit("acme", "first", cost=Cost(3))
        await asyncio.gather(
            scheduler.submit("acme", "large", cost=Cost(4)),
            scheduler.submit("acme", "small"),
        )
    assert notes.starts == [("first", 0.0), ("large", 3.0), ("small", 4.0)]


@virtual
async def test_submit_and_enqueue_share_one_line() -> None:
    """The order is that of arrival, whichever way one came."""
    notes = Notes()
    async with make(notes, Quota(Rate(1))) as scheduler:
        tasks: list[asyncio.Task[Any]] = []
        for n in range(6):
            if n % 2:
                tasks.append(spawn(scheduler.submit("acme", str(n))))
            else:
                await scheduler.enqueue("acme", str(n))
            await asyncio.sleep(0)
    assert notes.starts == [(str(n), float(n)) for n in range(6)]
    assert all(task.done() for task in tasks)


@virtual
async def test_a_burst_of_grants_resumes_in_order_between_tasks_and_callers() -> None:
    """Forty mixed waiters released by one wake-up come in exactly the order of their arrival."""
    order: list[str] = []

    async def handler(job: Job) -> None:
        order.append(str(job.prompt))

    async with make(handler, Quota(Rate(100, burst=100))) as scheduler:
        scheduler.engine.pause(0, "", 10**9)
        tasks: list[asyncio.Task[Any]] = []
        for n in range(40):
            if n % 3:
                tasks.append(spawn(scheduler.submit("acme", str(n))))
            else:
                await scheduler.enqueue("acme", str(n))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    assert order == [str(n) for n in range(40)]
