"""Virtual time on asyncio: a loop whose clock jumps to the next timer whenever nothing else can happen.

Time is kept in whole nanoseconds, so that slot times come out exactly. A loop that would sleep for ever
raises `SleepsForever` instead of hanging. Only timers are virtual: real sockets and threads do not advance
the clock.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from scheduler.runtime.clock import LoopTimer, Timer

NS = 1_000_000_000

T = TypeVar("T")


class SleepsForever(RuntimeError):
    """Every task waits for something that nothing will bring about."""


class _JumpingSelector(selectors.BaseSelector):
    """Waits for nothing: a time-out moves the clock instead."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        self._real = selectors.DefaultSelector()
        self._jump = jump

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if not ready and timeout is None:
            raise SleepsForever("every task waits, and no timer is set")
        if not ready and timeout:
            self._jump(timeout)
        return ready

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Any:
        return self._real.get_map()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, starting at 0.

    Exact to the nanosecond for the first ten days. The loop compares seconds as floats, which from then on
    become coarser than that: timers are then as exact as floats are, and time goes on all the same.
    """

    def __init__(self) -> None:
        self._now = 0
        super().__init__(_JumpingSelector(self._jump))
        self._clock_resolution = 1 / NS

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._now / NS

    def time_ns(self) -> int:
        """Nanoseconds of virtual time."""
        return self._now

    def _jump(self, seconds: float) -> None:
        """Move to the next timer, so far that the loop calls it."""
        when = self.time() + seconds
        self._now = max(self._now, round(when * NS))
        # What is smaller than the step of its floats, a loop does not see.
        self._clock_resolution = max(1 / NS, math.ulp(when))
        while when >= self.time() + self._clock_resolution:
            self._now += 1


class _VirtualTimer(LoopTimer):
    """The loop's timer for a time in whole nanoseconds."""

    def arm(self, when: int) -> None:
        """Replace the pending call by one at `when`, which is later than now on the loop's floats too."""
        self.close()
        seconds = self._loop.time()
        if when > self._clock.now():
            seconds = max(when / NS, math.nextafter(seconds, math.inf))
        self._handle = self._loop.call_at(seconds, self._callback, context=self._context)


class VirtualClock:
    """The scheduler's clock on a `VirtualLoop`: ``Scheduler(…, clock=VirtualClock())``."""

    def now(self) -> int:
        """Nanoseconds of the running loop, which must be a `VirtualLoop`."""
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise RuntimeError(f"loop: VirtualClock needs a VirtualLoop, got {type(loop).__name__}")
        return loop.time_ns()

    def timer(self, callback: Callable[[], None]) -> Timer:
        """The loop's own timer."""
        return _VirtualTimer(self, callback)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in virtual time, like `asyncio.run`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
