"""Many jobs in one call: each is judged as if it had been enqueued alone, right then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import (
    Cost,
    ErrRateLimited,
    Estimates,
    Policy,
    Quota,
    QuotaExceeded,
    Rate,
    Rung,
    Scheduler,
    SchedulerClosed,
    Ticket,
)
from scheduler.runtime.many import MOST
from scheduler.stores.results import MOST_BYTES
from tests.runtime.harness import KNOWN, Notes, assert_idle, make, now, virtual

SHORT = Policy(max_queue=2)
LADDER = Policy(ladder=[Rung(1, gate="small")])

JOBS: list[dict[str, Any]] = [
    *({"tenant": "acme", "prompt": str(number)} for number in range(7)),
    {"tenant": "zeta", "prompt": "a"},
    {"tenant": "acme", "prompt": "no room", "policy": SHORT},
    {"tenant": "acme", "prompt": "first", "priority": 30, "timeout": 50},
    {"tenant": "acme", "prompt": "too large", "cost": Cost(9)},
    {"tenant": "zeta", "prompt": "b", "session": "s"},
    {"tenant": "zeta", "prompt": "c", "session": "s"},
    {"tenant": "acme", "prompt": "strict", "policy": Policy.strict()},
    {"tenant": "acme", "prompt": "strict", "policy": Policy.strict()},
]
"""Rate 2/s, burst 5: lines, refusals of all kinds, a head start, a session."""

AT_GATES = [{"gate": "large", **job} for job in JOBS] + [
    {"tenant": "zeta", "prompt": "aside", "gate": "large", "policy": LADDER},
    {"tenant": "zeta", "prompt": "aside too", "gate": "large", "policy": LADDER},
]
GATES = {"large": Quota(Rate(1, burst=3)), "small": Quota(Rate(1))}


def told(answer: Ticket | Exception) -> tuple[Any, ...]:
    """What somebody hears of a job."""
    if isinstance(answer, Exception):
        return type(answer), str(answer)
    job = answer.job
    return answer.tenant, answer.state, answer.wait, answer.expected, answer.position, job.gate, job.rung


async def alone(scheduler: Scheduler, jobs: list[dict[str, Any]]) -> list[Ticket | Exception]:
    """The same jobs, one after the other."""
    answers: list[Ticket | Exception] = []
    for job in jobs:
        try:
            answers.append(await scheduler.enqueue(**job))
        except (ErrRateLimited, QuotaExceeded) as error:
            answers.append(error)
    return answers


@pytest.mark.parametrize(("jobs", "gates"), [(JOBS, None), (AT_GATES, GATES)], ids=["lines", "gates"])
@virtual
async def test_they_are_answered_and_run_as_if_they_came_alone(
    jobs: list[dict[str, Any]], gates: Any
) -> None:
    played = []
    for enqueue in (alone, Scheduler.enqueue_many):
        notes, begin = Notes(takes=0.3), now()
        async with make(notes, gates=gates) as scheduler:
            answers = await enqueue(scheduler, jobs)
            said = [told(answer) for answer in answers]
            tickets = [answer for answer in answers if isinstance(answer, Ticket)]
            results = [await ticket.result() for ticket in tickets]
        played.append((said, results, notes.order, [round(time - begin, 9) for time in notes.times]))
        assert_idle(scheduler)
    one_by_one, together = played
    assert together == one_by_one
    assert sum(isinstance(kind, type) for kind, *_ in together[0]) == 4


@virtual
async def test_a_refusal_concerns_nobody_else() -> None:
    async with make(Notes()) as scheduler:
        jobs = [{"tenant": "acme", "prompt": "x", "policy": Policy.strict()}] * 7
        answers = await scheduler.enqueue_many(jobs)
        refused = answers[5:]
        assert [type(answer) for answer in answers] == [Ticket] * 5 + [ErrRateLimited] * 2
        assert [error.retry_after for error in refused if isinstance(error, ErrRateLimited)] == [0.5, 1.0]
        assert (await scheduler.statistics()).refused["strict"] == 2  # type: ignore[index]


BAD: list[tuple[Any, type[Exception], str]] = [
    ({"tenant": "", "prompt": "x"}, ValueError, "jobs[1]: tenant: must not be empty, got ''"),
    ({"tenant": "acme", "prompt": 5}, TypeError, "jobs[1]: prompt: must be a string or a list"),
    ({"tenant": "acme", "prompt": "x", "timeout": 0}, ValueError, "jobs[1]: timeout: must be above 0, got 0"),
    (
        {"tenant": "acme", "prompt": "x", "gate": "m"},
        ValueError,
        "jobs[1]: gate: must be one of [''], got 'm'",
    ),
    ({"tenant": "acme", "prompt": "x", "cost": 1}, TypeError, "jobs[1]: cost: must be a Cost, got 1"),
    ({"tenant": "acme", "prompt": "x", "key": "k"}, ValueError, "jobs[1]: key: needs a store"),
    (
        {"tenant": "acme", "prompt": "x", "prio": 1},
        TypeError,
        "jobs[1]: 'prio' is no argument of a job; these are: ",
    ),
    ({"tenant": "acme", "prompt": "x", 5: 1}, TypeError, "jobs[1]: 5 is no argument of a job"),
    ({"tenant": "acme", "prompt": "x", "connection": 1}, TypeError, "jobs[1]: 'connection' is no argument"),
    ({"tenant": "acme"}, TypeError, "jobs[1]: prompt: is missing"),
    ({"prompt": "x"}, TypeError, "jobs[1]: tenant: is missing"),
    (("acme", "x"), TypeError, "jobs[1]: must be a mapping of arguments, got tuple"),
]


@pytest.mark.parametrize(("job", "kind", "text"), BAD, ids=[text for *_, text in BAD])
@virtual
async def test_a_bad_argument_is_named_and_nothing_is_accepted(
    job: Any, kind: type[Exception], text: str
) -> None:
    notes = Notes()
    async with make(notes) as scheduler:
        good = {"tenant": "acme", "prompt": "secret"}
        with pytest.raises(kind) as raised:
            await scheduler.enqueue_many([good, job, good])
        assert str(raised.value).startswith(text)
        assert "secret" not in str(raised.value)
        assert not scheduler.engine.granted
        assert scheduler.engine.tenants == {}
    assert notes.order == []


@pytest.mark.parametrize(
    ("jobs", "kind", "text"),
    [
        ("acme", TypeError, "jobs: must be an iterable of mappings, got str"),
        ({"tenant": "acme", "prompt": "x"}, TypeError, "jobs: must be an iterable of mappings, got dict"),
        (5, TypeError, "jobs: must be an iterable of mappings, got int"),
        (
            [{"tenant": "acme", "prompt": "x"}] * (MOST + 1),
            ValueError,
            "jobs: must be at most 1000 in one call",
        ),
    ],
)
@virtual
async def test_what_is_no_list_of_jobs(jobs: Any, kind: type[Exception], text: str) -> None:
    async with make(Notes()) as scheduler:
        with pytest.raises(kind, match=text):
            await scheduler.enqueue_many(jobs)
        with pytest.raises(ValueError, match="connection: needs a store"):
            await scheduler.enqueue_many([], connection=object())
        assert await scheduler.enqueue_many([]) == []
        assert scheduler.engine.tenants == {}


@virtual
async def test_any_iterable_of_jobs_will_do() -> None:
    async with make(Notes()) as scheduler:
        tickets = await scheduler.enqueue_many({"tenant": "acme", "prompt": text} for text in "ab")
        assert [await ticket.result() for ticket in tickets if isinstance(ticket, Ticket)] == [
            "answer to a",
            "answer to b",
        ]


@virtual
async def test_a_closed_scheduler_takes_none() -> None:
    scheduler = make(Notes())
    with pytest.raises(SchedulerClosed):
        await scheduler.enqueue_many([{"tenant": "acme", "prompt": "x"}])
    async with scheduler:
        pass
    with pytest.raises(SchedulerClosed):
        await scheduler.enqueue_many([{"tenant": "acme", "prompt": "x"}])


@virtual
async def test_counts_that_take_a_while_are_made_at_once_and_their_errors_are_answers() -> None:
    async def count(prompt: Any) -> int:
        await asyncio.sleep(2)
        if prompt == "breaks":
            raise RuntimeError("no count")
        return 10

    quota = Quota(KNOWN.requests, input_tokens=Rate(100, burst=1000))
    async with make(Notes(), quota, estimates=Estimates(count)) as scheduler:
        begin = now()
        jobs = [{"tenant": "acme", "prompt": text} for text in ("a", "breaks", "b")]
        first, broken, last = await scheduler.enqueue_many(jobs)
        assert now() - begin == 2
        assert isinstance(broken, RuntimeError)
        assert isinstance(first, Ticket)
        assert isinstance(last, Ticket)
        assert first.job.counted == last.job.counted == 10


@virtual
async def test_a_tenant_without_a_quota_is_named_before_anything_is_accepted() -> None:
    """By its index, as over a store."""
    jobs = [{"tenant": tenant, "prompt": "x"} for tenant in ("acme", "bolt", "acme")]
    for quotas in ({"acme": KNOWN}, {"acme": KNOWN, "bolt": 3}):
        async with make(Notes(), quotas) as scheduler:
            with pytest.raises((ValueError, TypeError), match=r"^jobs\[1\]: .*quotas.*bolt"):
                await scheduler.enqueue_many(jobs)
            assert scheduler.engine.granted == 0
            assert_idle(scheduler)


def test_the_bound_on_bytes_fits_one_message() -> None:
    assert MOST_BYTES < 2**30
