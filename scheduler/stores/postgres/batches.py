"""Coalescing: calls that come while a batch is under way go together in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from scheduler.errors import SchedulerClosed
from scheduler.stores.postgres.connections import Unkept
from scheduler.stores.results import MOST_BYTES

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batches(Generic[Item, Answer]):
    """Hands items to `work` in batches of at most `most`, one batch at a time, and each caller its answer.

    `weigh`: the bytes of an item, of which a batch has no more than fit in one message.

    An answer that is an exception is raised. If `work` fails, every caller of that batch gets the exception;
    but of those that cannot be kept together each is tried alone, so that it fails only whose fault it is.
    `unwanted` hears of an answer whose caller was cancelled while it was worked on.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        most: int,
        unwanted: Callable[[Item, Answer], None] | None = None,
        weigh: Callable[[Item], int] | None = None,
    ) -> None:
        self._work = work
        self._most = most
        self._unwanted = unwanted
        self._weigh = weigh
        self._queue: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._busy = False

    async def do(self, item: Item, group: asyncio.TaskGroup) -> Answer:
        """Have an item worked on. Cancelling the call takes it back only before its batch has begun."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if not self._busy:
            self._begin(group)
        try:
            return await future
        except asyncio.CancelledError:
            # Answered, and cancelled before it could resume: the answer would be lost.
            if future.done() and not future.cancelled() and future.exception() is None:
                self._forgo(item, future.result())
            raise

    def _begin(self, group: asyncio.TaskGroup) -> None:
        work, self._busy = self._run(), True
        try:
            group.create_task(work)
        except RuntimeError:  # the group is being torn down
            work.close()
            self._close()

    def _close(self) -> None:
        """Nobody works any more: tell those who wait."""
        self._busy = False
        left, self._queue = self._queue, []
        _tell(left, _closed())

    def _forgo(self, item: Item, answer: Answer) -> None:
        if self._unwanted is not None:
            self._unwanted(item, answer)

    async def _run(self) -> None:
        try:
            while self._queue:
                most, weigh = self._most, self._weigh
                if weigh is not None:
                    most = fitting((weigh(item) for item, _ in self._queue), most)
                batch, self._queue = self._queue[:most], self._queue[most:]
                # Whoever was cancelled before its batch began is left out of it.
                wanted = [(item, future) for item, future in batch if not future.done()]
                if wanted:
                    try:
                        await self._do(wanted)
                    except BaseException:
                        _tell(wanted, _closed())
                        raise
        finally:
            self._close()

    async def _do(self, batch: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._work([item for item, _ in batch])
        except Unkept as error:
            if len(batch) == 1:
                _tell(batch, error)
            else:
                for pair in batch:
                    if not pair[1].done():
                        await self._do([pair])
            return
        except Exception as error:  # noqa: BLE001 - it belongs to those who asked
            _tell(batch, error)
            return
        for (item, future), answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                if not future.done():
                    future.set_exception(answer)
            elif future.done():
                self._forgo(item, answer)
            else:
                future.set_result(answer)


def fitting(weights: Iterable[int], most: int) -> int:
    """How many of the first items go in one message, given the bytes of each: one or more, at most `most`."""
    count, left = 0, MOST_BYTES
    for weight in islice(weights, most):
        left -= weight
        if left < 0 and count:
            break
        count += 1
    return count


def _closed() -> SchedulerClosed:
    return SchedulerClosed("the store was closed while the call waited")


def _tell(batch: Sequence[tuple[Item, asyncio.Future[Answer]]], error: Exception) -> None:
    """Tell those who still wait why they wait in vain."""
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
