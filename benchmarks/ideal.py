"""What bare asyncio allows: the yardstick of the other figures, and no product.

One integer per tenant (the generic cell rate algorithm: the time at which the bucket would be full again,
"tat"), one heap of tenants by the time at which their next waiter is due, one timer for all, one future per
waiter. No checks, no slots, no gates, no statistics, no policy; a permit whose waiter is cancelled in the
instant after its release is lost.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from time import monotonic_ns

from benchmarks.measure import NS, NotPossible


class Bucket:
    """A tenant: the spacing of its permits, how far it may run ahead, and who waits."""

    __slots__ = ("ahead", "line", "spacing", "tat")

    def __init__(self, rate: int, per: int, burst: int) -> None:
        self.spacing = NS * per // rate
        self.ahead = self.spacing * (burst - 1)
        self.tat = 0
        self.line: deque[asyncio.Future[None]] | None = None


class Ideal:
    """Buckets by tenant. `timerfd`: wake by a Linux timerfd instead of the loop's own timer."""

    def __init__(self, timerfd: bool, clock: Callable[[], int] = monotonic_ns) -> None:
        self.buckets: dict[str, Bucket] = {}
        self._due: list[tuple[int, int, Bucket]] = []
        self._pushes = 0
        self._armed = 1 << 63
        self._now = clock
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._fd = self._open() if timerfd else -1

    def _open(self) -> int:
        library = ctypes.CDLL(None, use_errno=True)
        if not hasattr(library, "timerfd_create"):
            raise NotPossible("no timerfd on this system")
        self._settime = library.timerfd_settime
        fd = int(library.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC))
        self._loop.add_reader(fd, self._readable)
        return fd

    def close(self) -> None:
        """Wake nobody any more."""
        if self._handle is not None:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    async def acquire(self, tenant: str) -> None:
        """Wait for a permit, behind whoever waits already."""
        bucket = self.buckets[tenant]
        if bucket.line is None:
            now = self._now()
            tat = bucket.tat
            if tat < now:
                tat = now
            if tat - bucket.ahead <= now:
                bucket.tat = tat + bucket.spacing
                return
            bucket.line = deque()
            self._push(tat - bucket.ahead, bucket)
        future = self._loop.create_future()
        bucket.line.append(future)
        await future

    async def submit(self, tenant: str, prompt: str, handler: Callable[[str], Awaitable[None]]) -> None:
        """Wait for a permit, then run the handler."""
        await self.acquire(tenant)
        await handler(prompt)

    def check(self, tenant: str) -> int:
        """Take a permit and return 0, or return the nanoseconds until there is one."""
        bucket = self.buckets[tenant]
        now = self._now()
        tat = bucket.tat
        if tat < now:
            tat = now
        wait = tat - bucket.ahead - now
        if wait <= 0 and bucket.line is None:
            bucket.tat = tat + bucket.spacing
            return 0
        return wait + (len(bucket.line) * bucket.spacing if bucket.line else 0)

    def _push(self, due: int, bucket: Bucket) -> None:
        self._pushes += 1
        heappush(self._due, (due, self._pushes, bucket))
        if due < self._armed:
            self._arm(due)

    def _arm(self, due: int) -> None:
        self._armed = due
        if self._fd >= 0:
            self._settime(self._fd, 1, struct.pack("llll", 0, 0, *divmod(due, NS)), None)
            return
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_at(self._loop.time() + (due - self._now()) / NS, self._wake)

    def _readable(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._wake()

    def _wake(self) -> None:
        now = self._now()
        self._armed = 1 << 63
        while self._due and self._due[0][0] <= now:
            bucket = heappop(self._due)[2]
            self._release(bucket, now)
        if self._due:
            self._arm(self._due[0][0])

    def _release(self, bucket: Bucket, now: int) -> None:
        """Release all that is due, charged at the slots and not at the late wake-up."""
        line = bucket.line
        while line:
            if line[0].done():
                line.popleft()
                continue
            due = bucket.tat - bucket.ahead
            if due > now:
                self._pushes += 1
                heappush(self._due, (due, self._pushes, bucket))
                return
            line.popleft().set_result(None)
            bucket.tat += bucket.spacing
        bucket.line = None
