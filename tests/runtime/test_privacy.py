"""Law 14: prompts and replies never reach error texts, reprs, logs or statistics."""

from __future__ import annotations

import asyncio
import gc
import logging
import traceback
from typing import Any

import pytest

from scheduler import Cost, Job, Policy, Quota, Rate, Retry, Scheduler, Ticket
from tests.runtime.harness import make, outcomes, spawn, turns, virtual

MARK = "xyzzy-secret"
PROMPT = f"my {MARK} prompt"
BAD_PROMPTS: list[Any] = [
    MARK + "x" * 3000,
    [{"text": MARK + "x" * 3000}],
    MARK + "\ud800",
    [{"text": MARK + "\ud800"}],
    [{"text": MARK, "more": object()}],
    {"text": MARK},
    MARK.encode(),
]


async def handler(job: Job) -> str:
    """Behave as the prompt's first word says."""
    what = str(job.prompt).split()[0]
    if what == "again" and job.attempt < 2:
        raise Retry(0.5)
    if what == "never":
        raise Retry(0.1) from OSError("reset")
    if what == "slow":
        await asyncio.sleep(100)
    return f"{MARK} reply"


def said(thing: Any) -> list[str]:
    """Everything that one can be brought to say."""
    texts = [str(thing), repr(thing), f"{thing}"]
    while isinstance(thing, BaseException):
        texts += [str(thing), repr(thing), repr(thing.args), *traceback.format_exception(thing)]
        texts.append(repr(getattr(thing, "__dict__", "")))
        context = thing.__cause__ or thing.__context__
        if not isinstance(context, BaseException):
            break
        thing = context
    return texts


async def everything(scheduler: Scheduler) -> list[Any]:
    """Run every kind of outcome with a marked prompt, and return whatever came out but for the replies."""
    strict = Policy.strict()
    tickets: list[Ticket] = [
        await scheduler.enqueue("acme", f"{what} {PROMPT}", session="s" if what == "good" else None)
        for what in ("good", "again", "never", "slow", "good", "good")
    ]
    calls: list[Any] = [
        scheduler.submit("acme", f"slow {PROMPT}", timeout=3),
        scheduler.submit("acme", PROMPT, policy=strict),
        scheduler.submit("acme", PROMPT, policy=Policy(max_queue=0)),
        scheduler.submit("acme", PROMPT, cost=Cost(1000)),
        scheduler.submit("acme", PROMPT, timeout=0.001),
    ]
    tasks = [spawn(call) for call in calls]
    await turns(3)
    things: list[Any] = [
        *tickets,
        *(ticket.job for ticket in tickets),
    ]
    things += [repr(thing) for thing in things]
    things += [repr(task) for task in asyncio.all_tasks()]
    tickets[4].cancel()
    await asyncio.sleep(4)
    things += [
        scheduler,
        await scheduler.statistics(),
        await scheduler.statistics("acme"),
        scheduler.levels("acme"),
    ]
    await scheduler.aclose(drain=False)
    results = await outcomes(*tasks, *(spawn(ticket.result()) for ticket in tickets))
    things += [result for result in results if isinstance(result, BaseException)]
    for prompt in BAD_PROMPTS:
        with pytest.raises((TypeError, ValueError)) as refused:
            await scheduler.submit("acme", prompt)
        things.append(refused.value)
    things += [repr(ticket) for ticket in tickets]
    return things


def test_no_prompt_and_no_reply_in_anything_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """With asyncio in debug mode and every logger open."""
    caplog.set_level(logging.DEBUG)

    @virtual
    async def scenario() -> None:
        asyncio.get_running_loop().set_debug(True)
        async with make(
            handler, Quota(Rate(20, burst=4)), max_attempts=2, max_prompt_bytes=2000
        ) as scheduler:
            things = await everything(scheduler)
        kinds = {type(thing).__name__ for thing in things}
        assert kinds >= {
            *("ErrRateLimited", "QuotaExceeded", "DeadlineExceeded", "JobFailed", "SchedulerClosed"),
            *("TypeError", "ValueError", "Ticket", "QueuedJob", "Statistics"),
        }
        for thing in things:
            for text in said(thing):
                assert MARK not in text, type(thing)

    scenario()
    gc.collect()
    assert MARK not in caplog.text
