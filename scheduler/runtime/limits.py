"""Time limits of tries: one timer for all of them."""

from __future__ import annotations

import asyncio

from scheduler.core.agenda import Agenda
from scheduler.runtime.tries import Try


class Limits:
    """Interrupts tries when their time is over."""

    def __init__(self) -> None:
        self._agenda: Agenda[tuple[float, int, str, Try]] = Agenda()
        self._timer: asyncio.TimerHandle | None = None

    def put(self, one: Try, limit: float, which: str) -> None:
        """Interrupt a try in so many seconds, for that reason."""
        end = asyncio.get_running_loop().time() + limit
        self._agenda.put((end, one.claim.id, which, one))
        if self._timer is None or end < self._timer.when():
            self._arm(end)

    def drop(self, one: Try) -> None:
        """A try that is over, and had a limit or none."""
        if one.placed is not None:
            self._agenda.drop(one)

    def close(self) -> None:
        """Interrupt nobody any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, end: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(end, self._time_over)

    def _time_over(self) -> None:
        self._timer, now = None, asyncio.get_running_loop().time()
        while (first := self._agenda.first()) is not None:
            end, _, which, one = first
            if end > now:
                self._arm(end)
                return
            self._agenda.pop()
            one.interrupt(which)
