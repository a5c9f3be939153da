"""Closing: with work in line and in flight, drained or cancelled, from inside and outside, once or often."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import Cost, Job, JobFailed, Policy, Quota, Rate, Retry, Scheduler, SchedulerClosed
from tests.runtime.harness import KNOWN, Notes, assert_idle, level, make, now, outcomes, spawn, turns, virtual

SLOW = Quota(Rate(1))


async def busy(scheduler: Scheduler) -> list[asyncio.Task[Any]]:
    """One job runs; a caller, a ticket and a block wait."""

    async def block() -> None:
        async with scheduler.admit("acme"):
            pass

    ticket = await scheduler.enqueue("acme", "running")
    tasks = [spawn(ticket.result()), spawn(scheduler.submit("acme", "caller"))]
    tasks.append(spawn((await scheduler.enqueue("acme", "ticket")).result()))
    tasks.append(spawn(block()))
    await turns(2)
    assert scheduler.engine.waiting == 3
    return tasks


def refused(results: list[Any]) -> list[bool]:
    """Which of them ended in `SchedulerClosed`."""
    return [isinstance(result, SchedulerClosed) for result in results]


@virtual
async def test_leaving_the_block_runs_all_that_was_accepted() -> None:
    """Drain is the default; newcomers are refused meanwhile."""
    notes = Notes(takes=5)
    scheduler = make(notes, SLOW)
    async with scheduler:
        tasks = await busy(scheduler)
        late = spawn(asyncio.sleep(0.5))
        late.add_done_callback(lambda _: tasks.append(spawn(scheduler.submit("acme", "late"))))
    results = await outcomes(*tasks)
    assert refused(results) == [False, False, False, False, True]
    assert notes.starts == [("running", 0.0), ("ticket", 1.0), ("caller", 2.0)]
    assert now() == 7.0
    assert_idle(scheduler)


@pytest.mark.parametrize("how", ["inside", "outside", "exception", "cancelled"])
def test_closing_without_draining(how: str) -> None:
    """Who waits is told at once, who runs is cancelled, and all callers see `SchedulerClosed`."""

    @virtual
    async def scenario() -> None:
        notes = Notes(takes=5)
        scheduler = make(notes, SLOW)
        tasks: list[asyncio.Task[Any]] = []

        async def main() -> None:
            async with scheduler:
                tasks.extend(await busy(scheduler))
                await asyncio.sleep(0.5)
                if how == "inside":
                    await scheduler.aclose(drain=False)
                elif how == "exception":
                    raise LookupError
                else:
                    await asyncio.sleep(100)

        body = spawn(main())
        await asyncio.sleep(0.5)
        await turns(1)
        if how == "outside":
            await scheduler.aclose(drain=False)
            assert not body.done()
        if how == "cancelled":
            body.cancel()
        results = await outcomes(*tasks)
        assert refused(results) == [True] * 4
        assert now() == 0.5
        error = (await outcomes(body))[0]
        expected = {"exception": LookupError, "cancelled": asyncio.CancelledError}
        assert type(error) is expected.get(how, type(None))
        assert notes.ended == ["running"]
        assert (await scheduler.statistics()).cancelled == 4
        assert_idle(scheduler)

    scenario()


@pytest.mark.parametrize("how", ["closed", "forgotten"])
@pytest.mark.parametrize("small", ["block", "caller", "ticket"])
def test_nobody_is_let_go_by_the_end_of_another(small: str, how: str) -> None:
    """A large call that waits keeps a small one behind it; when both are sent away neither runs."""

    @virtual
    async def scenario() -> None:
        notes = Notes()
        async with make(notes, Quota(Rate(1, per=3600, burst=8)), policy=Policy(max_wait=None)) as scheduler:

            async def block(cost: Cost) -> None:
                async with scheduler.admit("acme", cost=cost):
                    notes.starts.append(("block", now()))

            await block(Cost(5))
            notes.starts.clear()
            tasks = [spawn(block(Cost(5)))]
            await turns(2)
            if small == "block":
                tasks.append(spawn(block(Cost(1))))
            elif small == "caller":
                tasks.append(spawn(scheduler.submit("acme", "caller", cost=Cost(1))))
            else:
                tasks.append(spawn((await scheduler.enqueue("acme", "ticket", cost=Cost(1))).result()))
            await turns(2)
            assert scheduler.engine.waiting == 2
            if how == "closed":
                await scheduler.aclose(drain=False)
            else:
                await scheduler.forget("acme")
            ends = {"closed": SchedulerClosed, "forgotten": JobFailed}
            assert [type(result) for result in await outcomes(*tasks)] == [ends[how]] * 2
            assert notes.starts == []
            assert level(scheduler) == 3.0
            assert (await scheduler.statistics()).cancelled == 2
        assert_idle(scheduler)

    scenario()


@virtual
async def test_a_drain_that_is_cancelled_cancels_the_jobs() -> None:
    """Nobody is left behind to wait for ever, and no handler goes on unattended."""
    notes = Notes(takes=5)
    scheduler = make(notes, SLOW)
    tasks: list[asyncio.Task[Any]] = []

    async def main() -> None:
        async with scheduler:
            tasks.extend(await busy(scheduler))

    body = spawn(main())
    await asyncio.sleep(1.5)
    body.cancel()
    assert isinstance((await outcomes(body))[0], asyncio.CancelledError)
    assert refused(await outcomes(*tasks)) == [True] * 4
    assert now() == 1.5
    await turns(3)
    assert_idle(scheduler)


@pytest.mark.parametrize("drains", [(True, True), (True, False), (False, True), (False, False)])
def test_closing_twice_at_the_same_time(drains: tuple[bool, bool]) -> None:
    """All who close return when all is quiet; one that is cancelled does not disturb the others."""

    @virtual
    async def scenario() -> None:
        scheduler = make(Notes(takes=3), SLOW)
        async with scheduler:
            tasks = await busy(scheduler)
            closing = [spawn(scheduler.aclose(drain=drain)) for drain in (*drains, True)]
            await asyncio.sleep(0.5)
            closing[2].cancel()
            results = await outcomes(*closing[:2])
            assert results == [None, None]
            ended = now()
            assert ended == (5.0 if all(drains) else 0.5)
            assert refused(await outcomes(*tasks)) == [not all(drains)] * 4
            await scheduler.aclose()
            await scheduler.aclose(drain=False)
            assert now() == ended
        assert_idle(scheduler)

    scenario()


@virtual
async def test_the_last_to_leave_ends_a_drain_at_once() -> None:
    """Be it a ticket that is cancelled, a caller that goes, or a block that lets the last one in."""
    for way in ("ticket", "caller", "block"):
        started = now()
        async with make(Notes(), Quota(concurrency=1)) as scheduler:
            first = scheduler.admit("acme")
            await first.__aenter__()

            async def waits(scheduler: Scheduler = scheduler) -> None:
                async with scheduler.admit("acme"):
                    pass

            ticket = await scheduler.enqueue("acme", "x") if way == "ticket" else None
            task = spawn(waits()) if way == "block" else None
            if way == "caller":
                task = spawn(scheduler.submit("acme", "x"))
            await turns(2)
            closing = spawn(scheduler.aclose())
            await asyncio.sleep(0.25)
            if ticket:
                ticket.cancel()
            elif way == "caller" and task:
                task.cancel()
            else:
                first.settle()
            await closing
            assert now() == started + 0.25, way
            first.settle()
            if task:
                await outcomes(task)


@virtual
async def test_tasks_that_have_yet_to_start_are_closed_unbegun() -> None:
    """Granted, but their tasks had no step: permits go back, the handler is never called."""
    notes = Notes(takes=1)
    async with make(notes, KNOWN) as scheduler:
        tickets = [await scheduler.enqueue("acme", "x") for _ in range(3)]
        caller = scheduler.submit("acme", "x")
        caller.send(None)  # granted, behind those tasks
        scheduler._abort()
        results = await outcomes(*(spawn(ticket.result()) for ticket in tickets))
        assert refused(results) == [True] * 3
        with pytest.raises(SchedulerClosed):
            caller.send(None)
        assert level(scheduler) == 5.0
        scheduler.closed = True
    assert notes.starts == []
    assert_idle(scheduler)


@virtual
async def test_a_handler_may_close_its_scheduler() -> None:
    """Without draining it is cancelled like all others, even before it first suspends."""
    closers = 0

    async def handler(job: Job) -> None:
        nonlocal closers
        closers += 1
        await scheduler.aclose(drain=False)

    async with make(handler) as scheduler:
        tasks = [spawn(scheduler.submit("acme", "x")), spawn((await scheduler.enqueue("acme", "x")).result())]
        assert refused(await outcomes(*tasks)) == [True, True]
        assert now() == 0.0
    assert_idle(scheduler)


@virtual
async def test_a_handler_that_would_wait_for_its_own_end_is_told_so() -> None:
    """By its own call, not by a task of its own, which may wait while the handler ends; nothing is closed."""
    drains: list[asyncio.Task[None]] = []

    async def handler(job: Job) -> None:
        if job.prompt == "later":
            drains.append(asyncio.create_task(job.scheduler.aclose()))
        else:
            await job.scheduler.aclose()

    async with make(handler) as scheduler:
        with pytest.raises(RuntimeError, match="would wait for itself"):
            await scheduler.submit("acme", "now")
        await scheduler.submit("acme", "later")
        await drains[0]
        with pytest.raises(SchedulerClosed):
            await scheduler.submit("acme", "too late")


@virtual
async def test_a_retry_does_not_outlive_the_closing() -> None:
    """A handler that raises `Retry` in the moment of closing ends as closed, not after its backoff."""

    async def handler(job: Job) -> None:
        await asyncio.sleep(1)
        raise Retry(300)

    async with make(handler) as scheduler:
        task = spawn(scheduler.submit("acme", "x"))
        ticket = await scheduler.enqueue("acme", "x")
        asyncio.get_running_loop().call_at(1.0, scheduler._abort)
        await asyncio.sleep(0)
        results = await outcomes(task, spawn(ticket.result()))
        assert now() == 1.0
        assert refused(results) == [True, True]
        assert_idle(scheduler)


@virtual
async def test_a_drain_waits_for_retries() -> None:
    """Accepted work runs to its end, backoff included."""
    tries = 0

    async def handler(job: Job) -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Retry(10)
        return "done"

    async with make(handler) as scheduler:
        ticket = await scheduler.enqueue("acme", "x")
    assert (await ticket.result(), now()) == ("done", 20.0)


@virtual
async def test_closing_waits_for_a_handler_that_swallows_its_cancellation() -> None:
    """It is told once; its caller sees `SchedulerClosed` when it has ended."""

    async def handler(job: Job) -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(7)
        return "late"

    async with make(handler) as scheduler:
        ticket = await scheduler.enqueue("acme", "x")
        await asyncio.sleep(1)
        await scheduler.aclose(drain=False)
        assert now() == 8.0
        with pytest.raises(SchedulerClosed):
            await ticket.result()
    assert_idle(scheduler)
