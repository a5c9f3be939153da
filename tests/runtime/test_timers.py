"""Clock and timer: one for all tenants, exact on the virtual clock, never early on the real one."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scheduler import Job, Quota, Rate, Scheduler
from scheduler.core.quota import NS
from scheduler.runtime import clock as clocks
from scheduler.runtime.clock import LoopTimer, MonotonicClock, TimerFd
from scheduler.testing.virtual import SleepsForever, VirtualClock, run_virtual
from tests.runtime.harness import KNOWN, Notes, assert_idle, make, now, outcomes, spawn, turns, virtual


class CountingClock(VirtualClock):
    """Counts the timers it makes, how often they are armed and how often they fire."""

    def __init__(self) -> None:
        self.timers = self.arms = self.wakes = 0

    def timer(self, callback: Callable[[], None]) -> Any:
        self.timers += 1

        def fire() -> None:
            self.wakes += 1
            callback()

        timer = super().timer(fire)
        arm = timer.arm

        def counted(when: int) -> None:
            self.arms += 1
            arm(when)

        timer.arm = counted  # type: ignore[method-assign]
        return timer


@virtual
async def test_one_timer_for_a_thousand_tenants() -> None:
    """However many wait, the loop has one timer of ours, and it fires once per instant of release."""
    clock = CountingClock()
    async with Scheduler(Notes(), quotas=Quota(Rate(1)), clock=clock) as scheduler:
        timers = len(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]
        tickets = [await scheduler.enqueue(f"t{n}", "x") for n in range(1000) for _ in range(3)]
        await asyncio.sleep(0)
        assert len(asyncio.get_running_loop()._scheduled) <= timers + 3  # type: ignore[attr-defined]
        await asyncio.gather(*(ticket.result() for ticket in tickets))
        assert now() == 2.0
    assert clock.timers == 1
    assert clock.wakes <= 6
    assert clock.arms <= 10


@virtual
async def test_an_idle_scheduler_sleeps() -> None:
    """After it has forgotten its tenants it never wakes again; with nobody seen it never wakes at all."""
    clock = CountingClock()
    async with Scheduler(Notes(), quotas=KNOWN, clock=clock) as scheduler:
        await asyncio.sleep(1000)
        assert clock.wakes == 0
        for n in range(50):
            await scheduler.submit(f"t{n}", "x")
        await asyncio.sleep(10)
        assert not scheduler.engine.tenants
        wakes = clock.wakes
        assert wakes <= 3
        await asyncio.sleep(100_000 - 2000)
        assert clock.wakes == wakes


class FakeClock:
    """A clock that is set and a timer that fires when the test says so."""

    def __init__(self) -> None:
        self.time = 0
        self.when: int | None = None
        self.closed = False
        self.callback: Callable[[], None] = lambda: None

    def now(self) -> int:
        return self.time

    def timer(self, callback: Callable[[], None]) -> FakeClock:
        self.callback = callback
        return self

    def arm(self, when: int) -> None:
        self.when = when

    def close(self) -> None:
        self.closed = True

    async def fire(self, at: float) -> None:
        self.time = round(at * NS)
        self.callback()
        await turns(3)


@virtual
async def test_a_timer_that_fires_early_grants_nothing_and_is_armed_again() -> None:
    """Nothing starts before its slot."""
    clock, notes = FakeClock(), Notes()
    async with Scheduler(notes, quotas=Quota(Rate(1)), clock=clock) as scheduler:
        for n in "012":
            await scheduler.enqueue("acme", n)
        await turns(2)
        for early in (0.2, 0.999999999):
            clock.when = None
            await clock.fire(early)
            assert clock.when == NS
        assert notes.order == ["0"]
        await clock.fire(1.0)
        assert notes.order == ["0", "1"]
        await clock.fire(2.0)
    assert clock.closed


@pytest.mark.parametrize(
    ("late", "slots", "stalls"),
    [(0.04, [0, 1, 2, 3], 0), (0.9, [0, 1, 2, 3], 0), (2.5, [0, 2.5, 3.5, 4.5], 1)],
)
def test_a_timer_that_fires_late(late: float, slots: list[float], stalls: int) -> None:
    """Within the cap the schedule does not move; a longer stall does, is counted, and is a named cause."""

    @virtual
    async def scenario() -> None:
        clock = FakeClock()
        waited: list[float] = []

        async def handler(job: Job) -> None:
            waited.append(job.waited)

        async with Scheduler(handler, quotas=Quota(Rate(1)), clock=clock) as scheduler:
            tickets = [await scheduler.enqueue("acme", f"{n}") for n in range(4)]
            await turns(2)
            await clock.fire(1.0 + late)
            for _ in range(5):
                if clock.when is not None and scheduler.engine.waiting:
                    await clock.fire(max(clock.time, clock.when) / NS)
            assert (await scheduler.statistics()).stalls == stalls
            assert waited == slots
            assert ("stall" in tickets[3].delayed_by) is bool(stalls)
            assert [ticket.wait for ticket in tickets] == [0, 1, 2, 3]

    scenario()


@virtual
async def test_whoever_comes_sees_the_time_though_the_timer_is_late() -> None:
    """A submit, a quote or a look at the statistics grants what is due, in order, before it acts."""
    clock, notes = FakeClock(), Notes()
    async with Scheduler(notes, quotas=Quota(Rate(1)), clock=clock) as scheduler:
        await scheduler.enqueue("acme", "0")
        await scheduler.enqueue("acme", "1")
        await turns(2)
        clock.time = NS
        newcomer = spawn(scheduler.submit("acme", "2"))
        await turns(4)
        assert notes.order == ["0", "1"]
        clock.time = 2 * NS
        assert (await scheduler.statistics()).waiting == 0
        await newcomer
        assert notes.order == ["0", "1", "2"]


def open_files() -> int:
    """How many file descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("timerfd", [True, False])
async def test_a_real_timer_is_never_early(timerfd: bool) -> None:
    """The last arming counts; a past time fires at once; a closed one never."""
    clock = MonotonicClock(timerfd)
    fired: list[int] = []
    event = asyncio.Event()

    def fire() -> None:
        fired.append(clock.now())
        event.set()

    descriptors = open_files()
    timer = clock.timer(fire)
    assert isinstance(timer, TimerFd if timerfd else LoopTimer)
    due = clock.now() + 20_000_000
    timer.arm(due - 15_000_000)
    timer.arm(due)
    await event.wait()
    # The loop's own timers may fire up to one tick of its clock early: the scheduler then arms again.
    assert fired[0] >= due - (0 if timerfd else 1000)
    for when in (clock.now() - NS, 0, -5):
        event.clear()
        timer.arm(when)
        await event.wait()
    timer.arm(clock.now() + 3600 * NS)
    timer.arm((1 << 63) - 1)
    timer.arm(clock.now() + 1_000_000)
    timer.close()
    timer.close()
    await asyncio.sleep(0.01)
    assert len(fired) == 4
    assert open_files() == descriptors


async def test_a_timerfd_that_is_armed_anew_in_the_moment_it_fires() -> None:
    """The loop saw it due, then it was set to later: not yet due."""
    fired: list[int] = []
    timer = TimerFd(lambda: fired.append(1))
    timer.arm(1)
    os.read(timer._fd, 8)
    timer._ready()
    assert fired == []
    timer.close()


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "many"), AttributeError("none"), NotImplementedError()]
)
async def test_without_a_timerfd_the_loop_s_timer_serves(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Unless it was insisted upon."""

    def fails(callback: Callable[[], None]) -> None:
        raise error

    monkeypatch.setattr(clocks, "TimerFd", fails)
    assert isinstance(MonotonicClock().timer(lambda: None), LoopTimer)
    with pytest.raises(type(error)):
        MonotonicClock(timerfd=True).timer(lambda: None)


@pytest.mark.parametrize("timerfd", [True, False])
async def test_the_scheduler_on_the_real_clock(timerfd: bool) -> None:
    """Thirty jobs at 1000 a second: in order, none before its slot, promises kept."""
    clock = MonotonicClock(timerfd)
    starts: list[tuple[str, int]] = []

    async def handler(job: Job) -> None:
        starts.append((str(job.prompt), clock.now()))

    async with Scheduler(handler, quotas=Quota(Rate(1000, burst=5)), clock=clock) as scheduler:
        tickets = [await scheduler.enqueue("acme", f"{n}") for n in range(30)]
        await asyncio.gather(*(ticket.result() for ticket in tickets))
        for ticket, (prompt, start) in zip(tickets, starts, strict=True):
            assert start >= ticket.job.slot
            assert ticket.expected == ticket.wait or ticket.delayed_by == frozenset({"stall"}), prompt
    assert [prompt for prompt, _ in starts] == [f"{n}" for n in range(30)]
    assert_idle(scheduler)


@virtual
async def test_two_schedulers_on_one_loop() -> None:
    """Each has its own timer, and one that is left does not disturb the other."""
    first, second = Notes(), Notes()
    async with make(first, Quota(Rate(1))) as one:
        async with make(second, Quota(Rate(2))) as two:
            tasks = [spawn(s.submit("acme", "x")) for s in (one, two) for _ in range(3)]
            await outcomes(*tasks[3:])
        await outcomes(*tasks)
    assert (first.times, second.times) == ([0.0, 1.0, 2.0], [0.0, 0.5, 1.0])


def test_the_virtual_loop_says_when_it_would_sleep_for_ever() -> None:
    """Instead of hanging; and its clock wants its loop."""

    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    async def elsewhere() -> None:
        VirtualClock().now()

    with pytest.raises(SleepsForever):
        run_virtual(hang())
    with pytest.raises(RuntimeError, match="loop: VirtualClock needs a VirtualLoop"):
        asyncio.run(elsewhere())
