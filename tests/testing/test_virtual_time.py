"""The virtual loop goes on for years, although the floats of a loop become coarser than a nanosecond."""

import asyncio
import random

import pytest

from scheduler import Job, Policy, Quota, Rate, Scheduler
from scheduler.testing import VirtualClock, run_virtual

DAY_S = 86_400.0
# A float of seconds is coarser than half a nanosecond after 24 days, than one after 97, than two after 194.
DAYS = (1, 20, 30, 60, 110, 250, 4_000)


@pytest.mark.parametrize("days", DAYS)
def test_sleeps_end_after_any_time_and_never_before_it(days: int) -> None:
    draw = random.Random(days)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(days * DAY_S)
        for seconds in [*(draw.random() * 10 for _ in range(300)), 1e-9, 3e-9, 0.0]:
            due = loop.time() + seconds
            await asyncio.sleep(seconds)
            assert due - 1e-9 <= loop.time() < due + 1e-6

    run_virtual(scenario())


@pytest.mark.parametrize("days", DAYS)
def test_what_is_due_at_once_is_called_after_any_time(days: int) -> None:
    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(days * DAY_S)
        called = asyncio.Event()
        loop.call_later(0, called.set)
        loop.call_at(loop.time(), called.set)
        await called.wait()
        return loop.time()

    assert run_virtual(scenario()) == days * DAY_S


@pytest.mark.parametrize("jobs", [30, 180, 600])
def test_a_scheduler_serves_its_line_for_months(jobs: int) -> None:
    """Three a day: of the last slots, no two floats of the loop are less than a nanosecond apart."""

    async def handler(job: Job) -> float:
        return job.waited

    async def scenario() -> list[float]:
        quota, patient = Quota(Rate(3, per=DAY_S, burst=1)), Policy(max_wait=None)
        async with Scheduler(handler, quotas=quota, policy=patient, clock=VirtualClock()) as scheduler:
            return list(await asyncio.gather(*(scheduler.submit("a", str(number)) for number in range(jobs))))

    waits = run_virtual(scenario())
    assert waits == pytest.approx([number * DAY_S / 3 for number in range(jobs)], abs=1e-8, rel=0)


def test_a_timer_in_nanoseconds_fires_at_its_time_however_late_it_is() -> None:
    async def scenario() -> list[int]:
        clock, early = VirtualClock(), list[int]()
        await asyncio.sleep(250 * DAY_S)
        for ahead in (1, 2, 3, 5, 1_000_001):
            fired = asyncio.Event()
            when = clock.now() + ahead
            clock.timer(fired.set).arm(when)
            await fired.wait()
            early.append(when - clock.now())
        return early

    # The step of the floats there is 3.7 ns, of which half is lost in rounding.
    assert all(-6 <= nanoseconds <= 2 for nanoseconds in run_virtual(scenario()))
