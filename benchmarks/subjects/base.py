"""What a subject of the measurements can be asked. Whatever it cannot do raises `NotPossible`.

Each subject writes its own loops and its own `one`, so that nothing of the harness runs between the caller
and the library: a waiter is one task that runs one coroutine function of the subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.measure import Log, NotPossible

PROMPT = "Say hi"


async def no_op(_: object) -> None:
    """The handler of a job that does nothing."""


@dataclass(frozen=True)
class Load:
    """The same for all subjects: each tenant has `rate_of(tenant)` permits per `per` seconds, and a burst.

    `max_queue` is the longest line, for a subject that has such a bound. `strict` asks for refusals instead
    of waiting. `clock` replaces real time, for a case that runs in virtual time. `gate`: permits per `per`
    seconds of a gate that all pass, where a tenant weighs `weight_of(tenant)`.
    """

    tenants: Sequence[str]
    rate: int | Callable[[str], int]
    per: int = 1
    burst: int = 1
    max_queue: int = 1000
    strict: bool = False
    clock: Callable[[], int] | None = None
    gate: int | None = None
    weight_of: Callable[[str], int] = lambda _: 1

    def rate_of(self, tenant: str) -> int:
        """Permits per `per` seconds."""
        return self.rate if isinstance(self.rate, int) else self.rate(tenant)


class Subject:
    """One way to wait for a permit."""

    distribution: ClassVar[str | None] = None

    def __init__(self, load: Load) -> None:
        self.load = load

    async def open(self) -> None:
        """Make the limiters of all tenants that the library wants made beforehand."""

    async def close(self) -> None:
        """Leave nothing behind on the loop."""

    async def passes(self, tenants: Sequence[str]) -> None:
        """Take one permit after the other, the way the library is meant to be used."""
        raise NotPossible("it cannot wait")

    async def refusals(self, tenants: Sequence[str]) -> None:
        """Ask without waiting, one time after the other, and learn when to come back."""
        raise NotPossible("it has no call that refuses")

    async def one(self, tenant: str, log: Log, number: int) -> None:
        """Wait for a permit, and write the moment of the release into the log."""
        raise NotPossible("it cannot wait")

    async def large(self, tenant: str, permits: int, log: Log, number: int) -> None:
        """Wait for several permits at once."""
        raise NotPossible("a call always takes one permit")

    async def within(self, tenant: str, seconds: float) -> None:
        """Wait for at most `seconds`; return when it is known that this is too short."""
        raise NotPossible("a wait has no bound")

    async def retry_times(self, tenant: str, callers: int) -> list[float]:
        """Let callers be refused, and return when each was told to come back, in seconds."""
        raise NotPossible("a refusal names no time")
