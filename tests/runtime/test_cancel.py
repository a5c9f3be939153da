"""Law 6: a cancellation, at whatever instant, gives back what was not used and lets those behind move up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from scheduler import Job, Quota, Rate, Retry, Scheduler, SchedulerClosed
from tests.runtime.harness import KNOWN, Notes, assert_idle, level, make, now, outcomes, spawn, turns, virtual

SLOW = Quota(Rate(1))


@virtual
async def test_before_the_first_step_nothing_was_asked() -> None:
    """A task cancelled before it began leaves no trace."""
    async with make(Notes()) as scheduler:
        await scheduler.submit("acme", "x")
        task = spawn(scheduler.submit("acme", "x"))
        task.cancel()
        assert isinstance((await outcomes(task))[0], asyncio.CancelledError)
        assert level(scheduler) == 4.0
        assert_idle(scheduler)


@pytest.mark.parametrize("way", ["cancel", "close", "ticket", "timeout", "group"])
def test_while_waiting_those_behind_move_up(way: str) -> None:
    """Four in line; the second leaves at 0.5 s; the others start as if it had never been there."""

    @virtual
    async def scenario() -> None:
        notes = Notes()
        async with make(notes, SLOW) as scheduler:
            await scheduler.submit("acme", "0")
            first = spawn(scheduler.submit("acme", "1"))
            await asyncio.sleep(0)
            leave = await leaver(scheduler, way)
            await turns(2)
            others = [spawn(scheduler.submit("acme", n)) for n in "34"]
            await asyncio.sleep(0.5)
            await leave()
            assert scheduler.engine.waiting == 3
            await asyncio.gather(first, *others)
            assert (await scheduler.statistics()).cancelled == 1
        assert notes.starts == [("0", 0.0), ("1", 1.0), ("3", 2.0), ("4", 3.0)]
        assert_idle(scheduler)

    scenario()


async def leaver(scheduler: Scheduler, way: str) -> Callable[[], Awaitable[None]]:
    """Submit "2" in one of several ways, and return what withdraws it."""
    if way == "ticket":
        ticket = await scheduler.enqueue("acme", "2")

        async def withdraw() -> None:
            assert ticket.cancel()

        return withdraw
    if way == "close":
        call = scheduler.submit("acme", "2")
        call.send(None)

        async def close() -> None:
            call.close()

        return close

    async def bounded() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await scheduler.submit("acme", "2")

    async def grouped() -> None:
        async def block() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(scheduler.submit("acme", "2"))
                await asyncio.sleep(0.5)
                raise LookupError

        with pytest.raises(ExceptionGroup):
            await block()

    work = {"timeout": bounded, "group": grouped}.get(way)
    task = spawn(work() if work else scheduler.submit("acme", "2"))

    async def cancel() -> None:
        if work is None:
            task.cancel()
        await turns(5)
        assert task.done()

    return cancel


Scenario = Callable[[Scheduler, Notes], Awaitable["asyncio.Task[Any]"]]


async def a_submit(scheduler: Scheduler, notes: Notes) -> asyncio.Task[Any]:
    return spawn(scheduler.submit("acme", "victim"))


async def an_admit(scheduler: Scheduler, notes: Notes) -> asyncio.Task[Any]:
    async def block() -> None:
        async with scheduler.admit("acme"):
            notes.starts.append(("victim", now()))
            await asyncio.sleep(0.25)

    return spawn(block())


async def a_bounded_submit(scheduler: Scheduler, notes: Notes) -> asyncio.Task[Any]:
    return spawn(asyncio.wait_for(scheduler.submit("acme", "victim", timeout=50, session="s"), 60))


async def a_ticket(scheduler: Scheduler, notes: Notes) -> asyncio.Task[Any]:
    ticket = await scheduler.enqueue("acme", "victim", session="s")
    task = spawn(ticket.result())
    task.cancel = lambda msg=None: ticket.cancel()  # type: ignore[method-assign]
    return task


async def run_until(at_turn: int | None, scenario: Scenario) -> tuple[list[tuple[Any, float]], int, float]:
    """Run a victim among others, cancelled at the n-th turn of the loop; return what came of it."""
    tries = 0

    async def work(job: Job) -> None:
        nonlocal tries
        notes.starts.append((job.prompt, now()))
        await asyncio.sleep(0.25)
        if job.prompt == "victim":
            tries += 1
            if tries == 1:
                raise Retry(after=0.5)

    notes = Notes()
    async with make(work, Quota(Rate(1, burst=2), concurrency=1), gates=Quota(Rate(2, burst=3))) as scheduler:
        others = [spawn(scheduler.submit("acme", f"before{n}")) for n in range(2)]
        await asyncio.sleep(0)
        victim = await scenario(scheduler, notes)
        await asyncio.sleep(0)
        others += [spawn(scheduler.submit("acme", f"after{n}")) for n in range(3)]
        others.append(spawn(scheduler.submit("bolt", "other")))
        count = 0
        while not victim.done():
            if count == at_turn:
                victim.cancel()
            await asyncio.sleep(0)
            count += 1
            if not victim.done() and not asyncio.get_running_loop()._ready:  # type: ignore[attr-defined]
                await _next_event()
        results = await outcomes(*others)
        assert results == [None] * len(others)
        await outcomes(victim)
    await turns(2)
    assert_idle(scheduler)
    await asyncio.sleep(100)
    return notes.starts, count, level_after(scheduler)


async def _next_event() -> None:
    """Sleep to the loop's next timer, so that counting turns costs no turns between events."""
    loop = asyncio.get_running_loop()
    timers = [handle.when() for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
    due = min(timers, default=0.0)
    if due > loop.time():
        await asyncio.sleep(due - loop.time())


def level_after(scheduler: Scheduler) -> float:
    """Permits that are missing once everything has refilled: none, or the tenant was forgotten."""
    return 2.0 if "acme" not in scheduler.engine.tenants else level(scheduler)


@pytest.mark.parametrize("scenario", [a_submit, an_admit, a_bounded_submit, a_ticket])
def test_cancelled_at_every_turn_of_the_loop(scenario: Scenario) -> None:
    """Whenever it is cancelled, nobody is lost, nothing leaks, and those in front start as without it."""
    longest = 0

    @virtual
    async def undisturbed() -> None:
        nonlocal longest
        starts, longest, _ = await run_until(None, scenario)
        assert len(starts) >= 7

    undisturbed()
    seen: set[tuple[Any, ...]] = set()
    for turn in range(longest):

        @virtual
        async def disturbed(turn: int = turn) -> None:
            starts, _, permits = await run_until(turn, scenario)
            assert permits == 2.0
            order = [prompt for prompt, _ in starts if prompt not in {"victim", "other"}]
            assert order == ["before0", "before1", "after0", "after1", "after2"]
            seen.add(tuple(starts))

        disturbed()
    assert len(seen) >= 2  # it was cancelled while waiting, and while running
    assert len({starts for starts in seen if "victim" not in dict(starts)}) == 1  # as if it had never come


@pytest.mark.parametrize("when", ["before", "at", "after"])
def test_exactly_at_the_instant_of_release(when: str) -> None:
    """Cancelled just before, at, or just after its grant: the permit goes to the next."""

    @virtual
    async def scenario() -> None:
        notes = Notes()
        loop = asyncio.get_running_loop()
        async with make(notes, SLOW) as scheduler:
            await scheduler.submit("acme", "0")
            victim = spawn(scheduler.submit("acme", "1"))
            if when == "before":
                loop.call_at(1.0, victim.cancel)  # set before the scheduler's own timer
            following = spawn(scheduler.submit("acme", "2"))
            await turns(2)
            if when == "at":
                loop.call_at(1.0, victim.cancel)
            if when == "after":
                tell = scheduler._tell

                def told() -> None:
                    tell()
                    victim.cancel()

                scheduler._tell = told  # type: ignore[method-assign]
            assert isinstance((await outcomes(victim))[0], asyncio.CancelledError)
            assert now() == 1.0
            await following
            assert now() == 1.0
        assert notes.starts == [("0", 0.0), ("2", 1.0)]
        assert_idle(scheduler)

    scenario()


@virtual
async def test_granted_behind_others_and_cancelled_before_its_step() -> None:
    """A newcomer that steps back for those who resume, and is cancelled there, gives its permit back."""
    notes = Notes()
    async with make(notes, KNOWN) as scheduler:
        queued = [await scheduler.enqueue("acme", "q") for _ in range(2)]  # tasks that have yet to start
        assert scheduler.resuming == 2
        victim = scheduler.submit("acme", "victim")
        victim.send(None)
        assert (scheduler.resuming, level(scheduler)) == (3, 2.0)
        with pytest.raises(asyncio.CancelledError):
            victim.throw(asyncio.CancelledError())
        assert (scheduler.resuming, level(scheduler)) == (2, 3.0)
        await asyncio.gather(*(ticket.result() for ticket in queued))
    assert notes.order == ["q", "q"]


@virtual
async def test_a_running_handler_is_cancelled_and_has_paid() -> None:
    """The call had begun: its permit stays paid, its slot is free at once."""
    notes = Notes(takes=10)
    async with make(notes, Quota(Rate(1, burst=2), concurrency=1)) as scheduler:
        task = spawn(scheduler.submit("acme", "x"))
        waiting = spawn(scheduler.submit("acme", "y"))
        await asyncio.sleep(0.25)
        task.cancel()
        await outcomes(task)
        assert notes.starts == [("x", 0.0), ("y", 0.25)]
        assert notes.ended == ["x"]
        assert level(scheduler) == 0.25
        await waiting
        assert (await scheduler.statistics()).cancelled == 1


@virtual
async def test_a_queued_task_that_never_began_gives_everything_back() -> None:
    """All tasks are cancelled from outside, as a loop that shuts down does, before the job's first step."""
    async with make(Notes(takes=5), KNOWN) as scheduler:
        await scheduler.submit("acme", "x")
        permits = level(scheduler)
        tickets = [await scheduler.enqueue("acme", "x") for _ in range(3)]
        for task in asyncio.all_tasks():
            if task.get_name().startswith("job "):
                task.cancel()
        results = await outcomes(*(spawn(ticket.result()) for ticket in tickets))
        assert all(isinstance(result, SchedulerClosed) for result in results)
        assert level(scheduler) == permits
        assert_idle(scheduler)
