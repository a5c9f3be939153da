"""Deferred jobs of a store remember their batches: another worker waits for these and sends nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from agent import Agent, BatchDesk, Reply
from agent.letter import Whereabouts
from scheduler import JobFailed, Policy, Quota, Rate, Rung, Scheduler
from scheduler.stores.postgres import PostgresStore
from scheduler.testing import ClaudeConfig, Script, SimulatedClaude, effects
from scheduler.testing.claude.batches import results
from scheduler.worker import Worker
from tests.agent.claudes import connected, tool, until
from tests.agent.deferring import bodies, calls, created, on, slow
from tests.stores.servers import dsn, server

__all__ = ["dsn", "server"]

ECHO = Script(contains="echo", echo=True)
LATER = Policy(max_wait=None, ladder=[Rung(10, defer="batch")])
LONG = {"batch_s": 10_000.0}
"""Batches of 100 s: none ends in a test, unless it is told to."""


@asynccontextmanager
async def submitting(
    dsn: str, config: ClaudeConfig, **options: Any
) -> AsyncIterator[tuple[SimulatedClaude, Agent, Scheduler]]:
    """A scheduler over a store whose gate has no permit left, so that all of its jobs are deferred."""

    async def elsewhere(_: Any) -> None:
        """Workers answer them."""

    async with (
        connected(config, **options) as (claude, agent),
        Scheduler(
            store=PostgresStore(dsn),
            quotas=Quota(),
            gates={"m": Quota(Rate.per_hour(1, burst=1))},
            policy=LATER,
            deferred=elsewhere,
        ) as scheduler,
    ):
        async with scheduler.admit("nobody"):
            pass
        yield claude, agent, scheduler


@asynccontextmanager
async def working(
    dsn: str, agent: Agent, lease: float = 30.0, **options: Any
) -> AsyncIterator[tuple[Worker, BatchDesk, asyncio.Task[None]]]:
    """A worker with a desk of its own; both are gone in the end."""
    quickly = {"window": 0.05, "poll": 0.02, "draw": lambda: 0.0, **options}
    async with BatchDesk(agent, **quickly) as desk, asyncio.TaskGroup() as group:
        worker = Worker(agent.handle, PostgresStore(dsn, lease=lease), deferred=desk.handle)
        task = group.create_task(worker.run(signals=False))
        try:
            yield worker, desk, task
        finally:
            worker.stop()


async def memories(dsn: str) -> list[Whereabouts | None]:
    """What jobs have in the database."""
    connection = await asyncpg.connect(dsn)
    try:
        found = await connection.fetch(
            "select memory from waitline.job where deferred and state = 1 order by id"
        )
    finally:
        await connection.close()
    return [Whereabouts.read(row["memory"]) for row in found]


async def remembered(dsn: str, jobs: int) -> list[Whereabouts]:
    """Where so many jobs are, as soon as all of them remember it; the test's time limit bounds it."""
    while True:
        found = [place for place in await memories(dsn) if place is not None]
        if len(found) == jobs:
            return found


def end_batches(claude: SimulatedClaude) -> None:
    """Let all batches end now that take their time."""
    for batch in claude._simulation.batches.values():
        results(claude._simulation, batch)  # what hit its requests while it ran
        batch.created_ns = -(10**18)


def answers(claude: SimulatedClaude) -> list[Any]:
    return calls(claude, "/results", method="GET")


@pytest.mark.parametrize("moment", ["while it is created", "once it is remembered"])
async def test_a_job_whose_worker_stops_is_answered_by_the_batch_that_it_was_in(
    dsn: str, moment: str
) -> None:
    late = on("create", effects.SlowHeaders(seconds=30.0))
    async with submitting(dsn, slow(late, scripts=(ECHO,), **LONG)) as (claude, agent, scheduler):
        ticket = await scheduler.enqueue("acme", "echo me")
        async with working(dsn, agent) as (worker, _, _):
            await until(lambda: len(created(claude)) == 1)
            if moment != "while it is created":
                await remembered(dsn, 1)
            worker.stop()
        (place,) = await remembered(dsn, 1)
        assert place.turn == 1
        assert place.batch in claude._simulation.batches
        end_batches(claude)
        async with working(dsn, agent):
            reply: Reply = await ticket.result()
        assert len(created(claude)) == 1
        assert calls(claude, "/cancel") == []
        assert [attempt.path for attempt in claude.requests].count("/v1/messages") == 0
    assert (reply.text, reply.turns) == ("echo me", 1)
    assert reply.receipt is not None
    assert (reply.receipt.deferred, reply.receipt.rung) == (True, 0)
    assert reply.receipt.usage == reply.usage
    assert reply.usage.output_tokens > 0
    assert "echo" not in str(place)


async def test_a_desk_that_is_full_costs_no_attempt(dsn: str) -> None:
    async with submitting(dsn, slow(**LONG)) as (claude, agent, scheduler):
        for prompt in ("one", "two"):
            await scheduler.enqueue("acme", prompt)
        async with working(dsn, agent, max_jobs=1), asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
            await remembered(dsn, 1)
            back = "select attempt, state from waitline.job where not deferred and prompt is not null"
            while not (found := await pool.fetch(back)):  # the test's time limit bounds it
                pass
            assert [tuple(row) for row in found] == [(0, 0)]
        assert len(created(claude)) == 1


async def test_a_job_whose_worker_is_lost_is_answered_by_the_batch_that_it_was_in(dsn: str) -> None:
    async with submitting(dsn, slow(scripts=(ECHO,), **LONG)) as (claude, agent, scheduler):
        ticket = await scheduler.enqueue("acme", "echo me")
        async with working(dsn, agent, lease=0.5) as (_, _, task):
            await remembered(dsn, 1)
            task.cancel()  # nothing is recorded: its lease has to end
        end_batches(claude)
        async with working(dsn, agent, lease=0.5):
            await until(lambda: bool(answers(claude)) or len(created(claude)) > 1)
            assert len(created(claude)) == 1
            reply: Reply = await ticket.result()
        assert len(created(claude)) == 1
        assert calls(claude, "/cancel") == []
    assert reply.text == "echo me"
    assert reply.receipt is not None
    assert reply.receipt.deferred
    assert reply.receipt.usage == reply.usage


async def test_a_creation_that_takes_too_long_does_not_keep_a_worker_from_stopping(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job remembers nothing then, and is sent again: at least once."""
    monkeypatch.setattr("agent.letter.PATIENCE_S", 0.05)
    late = on("create", effects.SlowHeaders(seconds=100.0), times=1)
    async with submitting(dsn, slow(late, scripts=(ECHO,))) as (claude, agent, scheduler):
        ticket = await scheduler.enqueue("acme", "echo me")
        async with working(dsn, agent) as (worker, _, task):
            await until(lambda: len(created(claude)) == 1)
            worker.stop()
            await task
            assert created(claude)[0].status is None
        assert await memories(dsn) == [None]
        async with working(dsn, agent):
            assert (await ticket.result()).text == "echo me"
        assert len(created(claude)) == 2


@pytest.mark.parametrize("moment", ["while it is created", "once it is remembered"])
async def test_a_desk_that_does_not_drain_leaves_its_batch_to_the_next(dsn: str, moment: str) -> None:
    late = on("create", effects.SlowHeaders(seconds=30.0))
    async with submitting(dsn, slow(late, scripts=(ECHO,), **LONG)) as (claude, agent, scheduler):
        ticket = await scheduler.enqueue("acme", "echo me")
        async with working(dsn, agent) as (_, desk, _):
            await until(lambda: len(created(claude)) == 1)
            if moment != "while it is created":
                await remembered(dsn, 1)
            await desk.aclose(drain=False)
            # The worker is still there, for other jobs.
            async with working(dsn, agent) as (_, other, _):
                await until(lambda: other.jobs == 1)
                end_batches(claude)
                assert (await ticket.result()).text == "echo me"
        assert len(created(claude)) == 1
        assert calls(claude, "/cancel") == []


async def test_all_jobs_of_a_batch_share_the_questions_about_it(dsn: str) -> None:
    async with submitting(dsn, slow(scripts=(ECHO,), **LONG)) as (claude, agent, scheduler):
        tickets = [await scheduler.enqueue(f"t{n}", f"echo {n}") for n in range(8)]
        async with working(dsn, agent) as (worker, _, _):
            places = await remembered(dsn, 8)
            worker.stop()
        assert len({place.batch for place in places}) == 1
        assert len({place.number for place in places}) == 8
        end_batches(claude)
        before = len(calls(claude, method="GET"))
        async with working(dsn, agent, window=0.3):
            replies = await asyncio.gather(*(ticket.result() for ticket in tickets))
        assert len(created(claude)) == len(answers(claude)) == 1
        # Whether it has ended, and the same again by the SDK before it reads the results.
        assert len(calls(claude, method="GET")) - before == 3
    assert [reply.text for reply in replies] == [f"echo {n}" for n in range(8)]


async def test_a_job_that_is_cancelled_takes_its_batch_along_unless_others_may_wait_for_it(dsn: str) -> None:
    async with submitting(dsn, slow(**LONG)) as (claude, agent, scheduler):
        ticket = await scheduler.enqueue("acme", "one")
        async with working(dsn, agent) as (worker, _, _):
            await remembered(dsn, 1)
            ticket.cancel()
            await until(lambda: len(calls(claude, "/cancel")) == 1)
            tickets = [await scheduler.enqueue("acme", "two") for _ in range(2)]
            await remembered(dsn, 2)
            worker.stop()
        async with working(dsn, agent) as (_, desk, _):
            await until(lambda: desk.jobs == 2)
            for each in tickets:
                each.cancel()
            await until(lambda: not desk._under_way)
        for each in (ticket, *tickets):
            with pytest.raises(JobFailed, match="cancelled"):
                await each.result()
        assert len(calls(claude, "/cancel")) == 1
        assert len(created(claude)) == 2


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (on("retrieve", effects.ErrorStatus(status=404)), "not_found"),
        (on("request", effects.ErrorStatus(status=400)), "bad_request"),
    ],
)
async def test_what_became_of_the_batch_meanwhile_is_what_becomes_of_the_job(
    dsn: str, fault: Any, kind: str
) -> None:
    async with submitting(dsn, slow(fault, **LONG)) as (claude, agent, scheduler):
        ticket = await scheduler.enqueue("acme", "one")
        async with working(dsn, agent, poll=600.0) as (worker, _, _):
            await remembered(dsn, 1)
            worker.stop()
        end_batches(claude)
        async with working(dsn, agent):
            with pytest.raises(JobFailed) as caught:
                await ticket.result()
        assert len(created(claude)) == 1
    assert caught.value.kind == kind


async def test_a_run_that_has_called_a_tool_begins_anew_elsewhere(dsn: str) -> None:
    asked: list[str] = []

    async def look() -> str:
        asked.append("look")
        return "a view"

    async with submitting(dsn, slow(**LONG), tools=[tool("look", look)]) as (claude, agent, scheduler):
        ticket = await scheduler.enqueue("acme", "look out")
        async with working(dsn, agent) as (worker, _, _):
            await remembered(dsn, 1)
            worker.stop()
        async with working(dsn, agent) as (worker, _, _):
            end_batches(claude)
            await until(lambda: len(created(claude)) == 2)  # the first answer was taken from where it was
            while (await remembered(dsn, 1))[0].turn == 1:
                pass
            worker.stop()
        assert asked == ["look"]
        async with working(dsn, agent):
            await until(lambda: len(created(claude)) == 3)
            end_batches(claude)
            await until(lambda: len(created(claude)) == 4)
            end_batches(claude)
            reply: Reply = await ticket.result()
        histories = [len(requests[0]["params"]["messages"]) for requests in bodies(claude)]
    assert (reply.text, reply.turns, asked) == ("Seen.", 2, ["look", "look"])
    assert histories == [1, 3, 1, 3]


@pytest.mark.parametrize("text", [None, "", "1 a", "0 a b", "1 a b c", "x a b", "1 a/b c", "1 a é"])
def test_what_is_no_batch_is_not_taken_for_one(text: str | None) -> None:
    assert Whereabouts.read(text) is None


def test_where_a_message_is_can_be_written_and_read() -> None:
    place = Whereabouts(3, "0-17", "msgbatch_1")
    assert Whereabouts.read(str(place)) == place
