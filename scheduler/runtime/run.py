"""Running a handler: bounded in time, interruptible, and free of timers while it does not suspend."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from types import CoroutineType, coroutine
from typing import Any, NoReturn


@coroutine
def _resume(work: Coroutine[Any, Any, Any], yielded: Any) -> Generator[Any, Any, Any]:
    """Go on with a coroutine that has already been stepped once and yielded `yielded`."""
    try:
        while True:
            try:
                sent = yield yielded
            except GeneratorExit:
                work.close()
                raise
            except BaseException as error:
                yielded = work.throw(error)
            else:
                yielded = work.send(sent)
    except StopIteration as done:
        return done.value


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


def stepwise(work: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    """A coroutine of any awaitable."""
    return work if work.__class__ is CoroutineType else _awaited(work)


class Run:
    """The rest of one try, after the handler has suspended for the first time.

    Most of the cost of a bounded call is its timer; a handler that returns at once never needs one. After the
    run is over, `interrupted` says why it was stopped, if it was: ``"time"`` or whatever
    `interrupt` was given. A handler that swallows its cancellation still ends the run as interrupted.
    """

    __slots__ = ("_scope", "interrupted")

    def __init__(self) -> None:
        self._scope: asyncio.Timeout | None = None
        self.interrupted: str | None = None

    async def go_on(self, steps: Coroutine[Any, Any, Any], yielded: Any, seconds: float) -> Any:
        """Let a handler that has suspended go on for `seconds`. Raises TimeoutError if it was interrupted."""
        loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout_at(loop.time() + (seconds if self.interrupted is None else 0.0))
        try:
            async with self._scope:
                result = await _resume(steps, yielded)
        except Exception as error:
            if self._scope.expired():
                self._stop(error)
            raise
        if self._scope.expired():
            self._stop(None)
        return result

    def _stop(self, error: Exception | None) -> NoReturn:
        """Whatever the handler made of its cancellation, the run ends as interrupted."""
        self.interrupted = self.interrupted or "time"
        raise TimeoutError from error

    def interrupt(self, reason: str) -> None:
        """Cancel the handler; the run ends with TimeoutError and `interrupted` set."""
        if self._scope is None:
            self.interrupted = reason
        elif self.interrupted is None and not self._scope.expired():
            self.interrupted = reason
            self._scope.reschedule(asyncio.get_running_loop().time())
