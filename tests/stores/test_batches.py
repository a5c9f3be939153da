"""Coalescing: who goes with whom, and what becomes of an answer that nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

import pytest

from scheduler.errors import SchedulerClosed
from scheduler.stores.postgres.batches import Batches
from scheduler.stores.postgres.connections import Unkept


class Work:
    """Doubles numbers, in batches that a test lets through."""

    def __init__(self, most: int = 10) -> None:
        self.batches: list[list[int]] = []
        self.unwanted: list[tuple[int, int]] = []
        self.open = asyncio.Event()
        self.coalesced: Batches[int, int] = Batches(self.work, most, self.note)

    async def work(self, items: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(items))
        await self.open.wait()
        return [2 * item for item in items]

    def note(self, item: int, answer: int) -> None:
        self.unwanted.append((item, answer))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_comes_meanwhile_goes_together_in_the_next_batch() -> None:
    work = Work(most=3)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(work.coalesced.do(n, group)) for n in range(8)]
        await settled()
        work.open.set()
    assert [call.result() for call in calls] == [2 * n for n in range(8)]
    assert list(chain(*work.batches)) == list(range(8))
    assert max(map(len, work.batches)) <= 3


async def test_a_call_that_is_cancelled_before_its_batch_is_left_out() -> None:
    work = Work()
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(work.coalesced.do(n, group)) for n in range(3)]
        await settled()
        late = group.create_task(work.coalesced.do(7, group))
        await settled()
        late.cancel()
        await settled()
        work.open.set()
    assert [call.result() for call in calls] == [0, 2, 4]
    assert 7 not in list(chain(*work.batches))
    assert not work.unwanted


async def test_an_answer_is_handed_over_whenever_its_call_is_cancelled() -> None:
    """While it is worked on, and when it is there and the caller has yet to resume."""
    for steps in range(4):
        work = Work()
        async with asyncio.TaskGroup() as group:
            call = group.create_task(work.coalesced.do(5, group))
            await settled()
            work.open.set()
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
        assert call.cancelled() or call.result() == 10
        assert work.unwanted == ([(5, 10)] if call.cancelled() else [])


async def test_a_batch_that_fails_fails_for_everybody_in_it() -> None:
    async def broken(items: Sequence[int]) -> Sequence[int]:
        raise OSError("gone")

    coalesced: Batches[int, int] = Batches(broken, 10)
    async with asyncio.TaskGroup() as group:
        with pytest.raises(OSError, match="gone"):
            await coalesced.do(1, group)


async def test_of_those_that_cannot_be_kept_together_only_the_one_fails_whose_fault_it_is() -> None:
    batches: list[list[int]] = []
    begun, go = asyncio.Event(), asyncio.Event()

    async def work(items: Sequence[int]) -> Sequence[int]:
        batches.append(list(items))
        begun.set()
        await go.wait()
        if 2 in items:
            raise Unkept("too large")
        return items

    coalesced: Batches[int, int] = Batches(work, 10)
    async with asyncio.TaskGroup() as group:
        calls = [asyncio.ensure_future(coalesced.do(n, group)) for n in (0, 1, 2, 3, 4)]
        await begun.wait()
        calls[3].cancel()  # nothing of it was kept, and nobody wants it any more
        go.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [answers[n] for n in (0, 1, 4)] == [0, 1, 4]
    assert isinstance(answers[2], Unkept)
    assert batches == [[0, 1, 2, 3, 4], [0], [1], [2], [4]]


async def test_whoever_waits_is_told_when_the_store_ends() -> None:
    """Those of the batch under way, those behind it, and those who come while all is being torn down."""
    begun = asyncio.Event()

    async def work(items: Sequence[int]) -> Sequence[int]:
        begun.set()
        await asyncio.Event().wait()
        return items

    coalesced: Batches[int, int] = Batches(work, 10)
    group = await asyncio.TaskGroup().__aenter__()
    calls = [asyncio.ensure_future(coalesced.do(n, group)) for n in range(3)]
    await begun.wait()
    ended = asyncio.CancelledError()
    with suppress(asyncio.CancelledError):
        await group.__aexit__(asyncio.CancelledError, ended, None)
    calls.append(asyncio.ensure_future(coalesced.do(3, group)))
    calls.append(asyncio.ensure_future(coalesced.do(4, group)))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, SchedulerClosed) for answer in answers)
