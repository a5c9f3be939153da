"""Clock and timer, injected as a pair: the only place in which the runtime meets real time.

On Linux the timer is a timerfd, which wakes the loop some 0.05 ms late; the loop's own timers are about
0.6 ms late in the median, because epoll counts in milliseconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Protocol

from scheduler.core.quota import NS


class Timer(Protocol):
    """Calls back once, at or after the time it was last armed for."""

    def arm(self, when: int) -> None:
        """Set the time, in nanoseconds of the clock that made this timer; the last call counts."""

    def close(self) -> None:
        """Never call back again."""


class Clock(Protocol):
    """Where time comes from, and what wakes the scheduler."""

    def now(self) -> int:
        """Nanoseconds that never go back."""

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A timer on the running loop."""


class MonotonicClock:
    """Real time. `timerfd` None: use one where the system has it; True: insist; False: the loop's timer."""

    def __init__(self, timerfd: bool | None = None) -> None:
        self._timerfd = timerfd

    now = staticmethod(time.monotonic_ns)

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A timerfd, or the loop's own timer where there is none."""
        if self._timerfd is not False:
            try:
                return TimerFd(callback)
            except (OSError, AttributeError, NotImplementedError):
                if self._timerfd:
                    raise
        return LoopTimer(self, callback)


class LoopTimer:
    """The loop's own timer, for any clock that runs at the loop's pace."""

    def __init__(self, clock: Clock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        # Not the context of whoever arms it, which would be kept alive by the timer.
        self._context = copy_context()

    def arm(self, when: int) -> None:
        """Replace the pending call by one at `when`."""
        self.close()
        delay = max(0, when - self._clock.now()) / NS
        self._handle = self._loop.call_at(self._loop.time() + delay, self._callback, context=self._context)

    def close(self) -> None:
        """Cancel the pending call."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class TimerFd:
    """A Linux timerfd on CLOCK_MONOTONIC, read by the running loop. See timerfd_create(2).

    Raises AttributeError where the C library has none, OSError where the system refuses, and
    NotImplementedError from a loop that cannot watch file descriptors.
    """

    _MONOTONIC = 1
    _ABSOLUTE = 1
    _FLAGS = os.O_NONBLOCK | os.O_CLOEXEC if hasattr(os, "O_CLOEXEC") else 0

    def __init__(self, callback: Callable[[], None]) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        create, self._settime = library.timerfd_create, library.timerfd_settime
        self._settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._callback = callback
        self._fd: int = create(self._MONOTONIC, self._FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = asyncio.get_running_loop()
        try:
            self._loop.add_reader(self._fd, self._ready)
        except NotImplementedError:
            os.close(self._fd)
            raise

    def arm(self, when: int) -> None:
        """Set the absolute time; one that is past fires at once."""
        seconds, nanoseconds = divmod(max(1, when), NS)
        spec = struct.pack("llll", 0, 0, seconds, nanoseconds)
        if self._settime(self._fd, self._ABSOLUTE, spec, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _ready(self) -> None:
        try:
            os.read(self._fd, 8)
        except OSError as error:
            if error.errno != errno.EAGAIN:  # armed anew since the loop saw it: not yet due
                raise
            return
        self._callback()

    def close(self) -> None:
        """Give the file descriptor back."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
