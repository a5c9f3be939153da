"""One message batch: how it is collected, goes upstream, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.letter import PATIENCE_S, Letter
from scheduler import SchedulerClosed, SchedulerError, UpstreamError
from scheduler.upstreams import batches
from scheduler.upstreams.batches import Kind
from scheduler.upstreams.claude import NOTHING, Client, usage_of

T = TypeVar("T")

AGE_PER_POLL = 10
"""A batch that is older than so many polls is asked for less often: every tenth of its age."""

LIFE_S = 25 * 3600.0
"""Every batch ends within 24 hours, says the API: this one is not waited for any longer."""

MALFORMED_MAX = 3
"""How often in a row a batch may answer with what is no answer."""

CANCEL_TRIES = 5
"""How often it is tried to cancel a batch, which would otherwise be billed for nothing."""

CANCEL_S = 20.0
"""For how long: whoever closes a desk waits for it."""

FINAL = frozenset({Kind.AUTHENTICATION, Kind.PERMISSION, Kind.NOT_FOUND})
"""What no patience with a batch mends: whoever asks for it may not, or it is not there."""


@dataclass(eq=False, repr=False)
class Batch:
    """Some letters that go together.

    `poll`: seconds between two questions whether it has ended. `taken`: called once the upstream has taken
    it, or it was given up to have it taken. `id`: the upstream's, once that has taken it. One that is made
    with an id was created by another desk, or an earlier one; `first`: seconds until it is asked for.
    `others`: desks elsewhere may wait for it too, so it is never cancelled. `letters`: those whose answers
    are wanted here, by custom id. `size`: its bytes. `over`: it takes none any more.
    """

    client: Client
    poll: float
    draw: Callable[[], float]
    taken: Callable[[Batch], object]
    first: float
    id: str | None = None
    others: bool = False
    letters: dict[str, Letter] = field(default_factory=dict)
    size: int = 0
    over: bool = False
    _count: int = 0
    _call: asyncio.Future[None] | None = None
    _limit: asyncio.Timeout | None = None
    _notes: asyncio.TaskGroup = field(init=False)
    _unwanted: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, letter: Letter) -> None:
        """Put a letter in; one that was found is in it already."""
        number = batches.custom_id(self._count, letter.name) if letter.found is None else letter.found.number
        self._count += 1
        self.size += letter.size
        self.letters[number] = letter
        letter.posted(self, number)
        self._unwanted.clear()

    def drop(self, number: str, letter: Letter) -> None:
        """Nobody here wants the answer to this letter any more, if it has not got it already."""
        if self.letters.get(number) is letter:
            self._leave(self.letters.pop(number))
            self.size -= letter.size
            if not self.letters:
                self._abandon()

    def _leave(self, letter: Letter) -> None:
        """A letter gets no answer here. Another desk will ask for it if its job goes on, once it was sent."""
        away = self.id is not None or self._call is not None
        self.others = self.others or (away and letter.survives)

    async def called(self) -> None:
        """Wait for the end of a call that is creating it."""
        if self._call is not None:
            await asyncio.shield(self._call)

    def end(self, error: SchedulerError) -> None:
        """Let all who still wait know that there will be no answer."""
        while self.letters:
            _, letter = self.letters.popitem()
            if isinstance(error, SchedulerClosed):
                self._leave(letter)
            letter.answered(error, letter.usage)
        self._abandon()

    def _abandon(self) -> None:
        """Nobody here wants an answer any more, nor to wait for a call: for one that creates it, not long."""
        self._unwanted.set()
        if self._limit is not None and self._limit.when() is None:
            patience = 0.0 if self._call is None else PATIENCE_S
            self._limit.reschedule(asyncio.get_running_loop().time() + patience)

    async def _while_wanted(self, call: Coroutine[Any, Any, T]) -> T:
        """What a call returns; TimeoutError if that is not waited for any more."""
        limit = self._limit = asyncio.timeout(None)
        async with limit:
            try:
                return await call
            finally:
                self._limit = None

    async def travel(self) -> None:
        """Go upstream and come back. In the end nobody waits for it any more."""
        async with asyncio.TaskGroup() as self._notes:
            await self._travel()

    async def _travel(self) -> None:
        try:
            if self.id is None:
                try:
                    await self._create()
                finally:
                    self.taken(self)
            if self.id is not None and not await self._come_back(self.id):
                self.over = True
                if not self.others:
                    await self._cancel(self.id)
        except UpstreamError as error:
            self.end(error)
        except Exception:  # noqa: BLE001 - what the upstream may answer knows no bounds; other batches go on
            self.end(UpstreamError(Kind.MALFORMED))
        finally:
            self.over = True
            self.end(SchedulerClosed("the desk was closed while the job's batch was under way"))

    async def _create(self) -> None:
        """Have it taken upstream; what may pass is tried again. Raises `UpstreamError`."""
        tries = 0
        while self.letters:
            tries += 1
            letters = dict(self.letters)
            for letter in letters.values():
                letter.sent()
            try:
                self.id = await self._while_wanted(self._call_upstream(letters))
                return
            except TimeoutError:
                return
            except UpstreamError as error:
                if batches.is_refusal(error):
                    for letter in letters.values():
                        letter.usage = NOTHING
                again = batches.outcome(error, tries, self.draw)
                if again is None:
                    raise
            await self._pause(again.after)

    async def _call_upstream(self, letters: Mapping[str, Letter]) -> str:
        """Ask once for it to be created. First of all its jobs remember it: they may be elsewhere soon."""
        self._call = asyncio.get_running_loop().create_future()
        try:
            requests = [(number, letter.body) for number, letter in letters.items()]
            batch_id = await batches.create(self.client, requests)
            for letter in letters.values():
                letter.body = b""
                letter.note(batch_id, self._notes)
            return batch_id
        finally:
            self._call.set_result(None)
            self._call = None

    async def _come_back(self, batch_id: str) -> bool:
        """Wait for the results, and hand them out. False once nobody wants them; raises `UpstreamError`."""
        loop = asyncio.get_running_loop()
        begin, failures, wait = loop.time(), 0, self.first
        while not await self._pause(wait):
            age = loop.time() - begin
            wait = max(self.poll, age / AGE_PER_POLL)
            try:
                ended = await self._while_wanted(self._look(batch_id))
                if ended and not self.letters:
                    return True
                failures, wait = 0, self.first if ended else wait
            except TimeoutError:
                continue
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
        """Ask whether it has ended, and hand out the results if so: True. Raises `UpstreamError`.

        Letters that come while results are read may have missed theirs, and want another look.
        """
        if not await batches.has_ended(self.client, batch_id):
            return False
        asked = dict(self.letters)
        async with aclosing(batches.results(self.client, batch_id)) as results:
            async for number, answer in results:
                # Only what succeeded is billed.
                used = NOTHING if isinstance(answer, UpstreamError) else usage_of(answer)
                letter = self.letters.pop(number, None)
                if letter is not None:
                    letter.answered(answer, used)
        if any(self.letters.get(number) is letter for number, letter in asked.items()):
            raise UpstreamError(Kind.MALFORMED, 200)
        return True

    async def _cancel(self, batch_id: str) -> None:
        """Cancel it upstream, if that can be done soon: what has run by then is billed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_S):
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
