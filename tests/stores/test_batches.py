"""Coalescing: who goes with whom, and what becomes of an answer that nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain

import pytest

from scheduler.stores.postgres.batches import Batches


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
