"""Jobs in memory remember what they are told from one try to the next."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler import Job, Retry, Scheduler


async def test_a_job_in_memory_remembers_something_for_its_next_try() -> None:
    seen: list[str | None] = []

    async def handle(job: Job) -> bool:
        seen.append(job.remembered)
        if job.attempt == 1:
            assert await job.remember("here")
            raise Retry
        return job.survives

    async with Scheduler(handle) as scheduler:
        assert await scheduler.submit("a", "x") is False
        assert await scheduler.submit("b", "y") is False
    assert seen == [None, "here", None, "here"]


@pytest.mark.parametrize(
    ("text", "error"), [(7, TypeError), ("x" * 501, ValueError), ("é", ValueError), ("a\0b", ValueError)]
)
async def test_what_is_too_long_or_no_plain_text_is_refused_without_being_named(
    text: Any, error: type[Exception]
) -> None:
    async def handle(job: Job) -> None:
        await job.remember(text)

    async with Scheduler(handle) as scheduler:
        with pytest.raises(error, match="text: must be") as caught:
            await scheduler.submit("a", "x")
    assert str(text) not in str(caught.value)
