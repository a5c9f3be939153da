"""One message batch: how it is collected, goes upstream, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from copy import copy
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from scheduler import SchedulerClosed, SchedulerError, UpstreamError, Usage
from scheduler.upstreams import batches
from scheduler.upstreams.batches import Kind
from scheduler.upstreams.claude import NOTHING, Client, Message, usage_of

AGE_PER_POLL = 10
"""A batch that is older than so many polls is asked for less often: every tenth of its age."""

LIFE_S = 25 * 3600.0
"""Every batch ends within 24 hours, says the API: this one is not waited for any longer."""

MALFORMED_MAX = 3
"""How often in a row a batch may answer with what is no answer."""

CANCEL_TRIES = 5
"""How often it is tried to cancel a batch, which would otherwise be billed for nothing."""

FINAL = frozenset({Kind.AUTHENTICATION, Kind.PERMISSION, Kind.NOT_FOUND})
"""What no patience with a batch mends: whoever asks for it may not, or it is not there."""


class Letter:
    """One message of a job, on its way in a batch: see `agent.run.Sending`.

    It holds its place in the batch for the length of the ``async with`` block; outside of it nobody wants its
    answer.
    """

    def __init__(self, take: Callable[[Letter], Batch], name: str, request: Mapping[str, Any]) -> None:
        """`take`: finds the batch that it goes with, and puts it there."""
        self.name = name
        self.request = request
        self.size = batches.size_of(request)
        self.usage: Usage | None = NOTHING
        self._take = take
        self._answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._message: Message | None = None
        self._batch: Batch | None = None
        self._number = ""

    @property
    def message(self) -> Message:
        """The complete answer; RuntimeError before there is one."""
        if self._message is None:
            raise RuntimeError("the message is not complete")
        return self._message

    def posted(self, batch: Batch, number: str) -> None:
        """It is in a batch, under this custom id."""
        self._batch, self._number = batch, number

    def sent(self) -> None:
        """From now on it may be worked on, and be billed, whether there is an answer or not."""
        self.usage = None

    def answered(self, answer: Message | SchedulerError, usage: Usage | None) -> None:
        """This is what became of it."""
        self.usage = usage
        if self._answer.done():
            return  # its job is just being cancelled
        if isinstance(answer, SchedulerError):
            # A copy for each: whoever raises an exception writes into it.
            self._answer.set_exception(copy(answer))
        else:
            self._answer.set_result(answer)

    async def __aenter__(self) -> Self:
        self._take(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Of a failure that came too late to be looked at, this says that nobody will.
        self._answer.cancel()
        if self._batch is not None:
            self._batch.drop(self._number)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._message is None:
            self._message = await self._answer
        raise StopAsyncIteration


@dataclass(eq=False, repr=False)
class Batch:
    """Some letters that go together.

    `poll`: seconds between two questions whether it has ended. `taken`: called once the upstream has taken
    it, or it was given up to have it taken. `letters`: those whose answers are still wanted, by custom id.
    `size`: its bytes. `id`: the upstream's, once that has taken it.
    """

    client: Client
    poll: float
    draw: Callable[[], float]
    taken: Callable[[], object]
    letters: dict[str, Letter] = field(default_factory=dict)
    size: int = 0
    id: str | None = None
    _count: int = 0
    _unwanted: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, letter: Letter) -> None:
        """Put a letter in."""
        number = batches.custom_id(self._count, letter.name)
        self._count += 1
        self.size += letter.size
        self.letters[number] = letter
        letter.posted(self, number)
        self._unwanted.clear()

    def drop(self, number: str) -> None:
        """Nobody wants the answer to this letter any more, if it has not got it already."""
        letter = self.letters.pop(number, None)
        if letter is not None:
            self.size -= letter.size
            if not self.letters:
                self._unwanted.set()

    def end(self, error: SchedulerError) -> None:
        """Let all who still wait know that there will be no answer."""
        while self.letters:
            _, letter = self.letters.popitem()
            letter.answered(error, letter.usage)
        self._unwanted.set()

    async def travel(self) -> None:
        """Go upstream and come back. In the end nobody waits for it any more."""
        try:
            try:
                await self._create()
            finally:
                self.taken()
            if self.id is not None and not await self._come_back(self.id):
                await self._cancel(self.id)
        except UpstreamError as error:
            self.end(error)
        finally:
            self.end(SchedulerClosed("the desk was closed while the job's batch was under way"))

    async def _create(self) -> None:
        """Have it taken upstream; what may pass is tried again. Raises `UpstreamError`."""
        tries = 0
        while self.letters:
            tries += 1
            letters = dict(self.letters)
            for letter in letters.values():
                letter.sent()
            requests = [(number, letter.request) for number, letter in letters.items()]
            try:
                self.id = await batches.create(self.client, requests)
                return
            except UpstreamError as error:
                if batches.is_refusal(error):
                    for letter in letters.values():
                        letter.usage = NOTHING
                again = batches.outcome(error, tries, self.draw)
                if again is None:
                    raise
            await self._pause(again.after)

    async def _come_back(self, batch_id: str) -> bool:
        """Wait for the results, and hand them out. False once nobody wants them; raises `UpstreamError`."""
        loop = asyncio.get_running_loop()
        begin, failures, wait = loop.time(), 0, self.poll
        while not await self._pause(wait):
            age = loop.time() - begin
            wait = max(self.poll, age / AGE_PER_POLL)
            try:
                if await self._look(batch_id):
                    return True
                failures = 0
            except UpstreamError as error:
                failures += 1
                most = MALFORMED_MAX if error.kind == Kind.MALFORMED else batches.TRIES_MAX
                if error.kind in FINAL or failures >= most:
                    raise
                asked = min(error.retry_after or 0.0, batches.RETRY_AFTER_MAX_S)
                wait = max(wait, asked, batches.backoff_after(failures, self.draw))
            if age > LIFE_S:
                raise UpstreamError(Kind.EXPIRED)
        return False

    async def _look(self, batch_id: str) -> bool:
        """Ask whether it has ended, and hand out the results if so: True. Raises `UpstreamError`."""
        if not await batches.has_ended(self.client, batch_id):
            return False
        async with aclosing(batches.results(self.client, batch_id)) as results:
            async for number, answer in results:
                letter = self.letters.pop(number, None)
                if letter is None:
                    continue
                # Only what succeeded is billed.
                used = NOTHING if isinstance(answer, UpstreamError) else usage_of(answer)
                letter.answered(answer, used)
        if self.letters:
            raise UpstreamError(Kind.MALFORMED, 200)
        return True

    async def _cancel(self, batch_id: str) -> None:
        """Cancel it upstream, if that can be done soon: what has run by then is billed."""
        for tries in range(1, CANCEL_TRIES + 1):
            try:
                await batches.cancel(self.client, batch_id)
                return
            except UpstreamError as error:
                again = batches.outcome(error, tries, self.draw, retry_timeouts=True)
                if again is None:
                    return
            await asyncio.sleep(again.after)

    async def _pause(self, seconds: float) -> bool:
        """Wait, or until nobody wants an answer any more; whether that is so."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._unwanted.wait()
        return self._unwanted.is_set()
