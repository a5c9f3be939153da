"""What a durable queue can be asked. Whatever it cannot do raises `NotPossible`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import NotPossible

TEXT = "Say hi to everybody who has been waiting in this line for so long, and mean it, please. Thank you."
"""A prompt of about 100 bytes."""

NEVER_BINDS = 1_000_000

Ready = Callable[[], None]
Ran = Callable[[int], None]


@dataclass(frozen=True)
class Load:
    """`tenants` tenants; tenant number t has `rates[t % len(rates)]` permits per second, and a burst.

    Unless told otherwise no bucket ever binds.
    """

    tenants: int = 1
    rates: Sequence[int] = (NEVER_BINDS,)
    burst: int = NEVER_BINDS

    def tenant(self, number: int) -> str:
        """Whose the job of this number is: tenants take turns."""
        return f"tenant-{number % self.tenants}"

    def rate(self, tenant: str) -> int:
        """Permits per second."""
        return self.rates[int(tenant.rpartition("-")[2]) % len(self.rates)]


class Subject:
    """A queue in the database at `dsn`. Jobs are numbered, their handler does nothing but tell its number."""

    slow = False
    """Whether it gets a tenth of the jobs in the cases whose length is not the point."""

    answers = False
    """Whether the caller gets what the handler returned."""

    left: str
    """SQL that counts the jobs whose end is not committed yet."""

    def __init__(self, dsn: str, load: Load) -> None:
        self.dsn, self.load = dsn, load

    async def install(self) -> None:
        """Make the tables."""

    async def open(self) -> None:
        """Be ready to enqueue."""

    async def close(self) -> None:
        """Leave nothing behind."""

    async def enqueue(self, number: int) -> None:
        """Enqueue a job. It is committed when this returns."""
        raise NotImplementedError

    async def batch(self, numbers: Sequence[int]) -> None:
        """Enqueue many jobs in one call."""
        raise NotPossible("it has no call that enqueues many jobs")

    async def life(self, number: int) -> Any:
        """Enqueue a job and wait for what its handler returned."""
        raise NotImplementedError

    def work(self, ready: Ready, ran: Ran) -> None:
        """Be a worker, in a process of its own, until it is killed."""
        raise NotImplementedError
