"""What goes wrong with batches: no job is lost, and none fails for another one's sake."""

from __future__ import annotations

import gc
import traceback

import pytest

from agent.batch import Batch
from agent.letter import Letter
from scheduler import (
    Quota,
    Rate,
    UpstreamError,
    Usage,
)
from scheduler.testing import effects
from scheduler.testing.claude import batches
from tests.agent.claudes import SECRET, until
from tests.agent.deferring import (
    bodies,
    calls,
    created,
    crowd,
    deferring,
    on,
    replies,
    slow,
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "bad_request"), (401, "authentication"), (404, "not_found"), (413, "too_large")],
)
async def test_one_that_errored_fails_alone(status: int, kind: str) -> None:
    config = slow(on("request", effects.ErrorStatus(status=status, message=SECRET), nth=2))
    async with deferring(config) as (claude, scheduler, _):
        one, two, three = await replies(await crowd(scheduler, "one", SECRET, "three"))
        assert len(created(claude)) == 1
    assert isinstance(two, UpstreamError)
    assert two.kind == kind
    assert SECRET not in f"{two!r} {two}"
    assert one.turns == three.turns == 1


@pytest.mark.parametrize("status", [429, 500, 529])
async def test_one_that_errored_for_now_goes_back_to_its_line(status: int) -> None:
    config = slow(on("request", effects.ErrorStatus(status=status), nth=1))
    async with deferring(config, paused=1.0, quotas=Quota(Rate.per_hour(1, burst=5))) as (
        claude,
        scheduler,
        _,
    ):
        tickets = await crowd(scheduler, "one", "two")
        assert (await tickets[1].result()).receipt.deferred
        reply = await tickets[0].result()
        assert (await scheduler.statistics()).retried == 1
        levels = (await scheduler.statistics("t0")).levels
    # It has paid now, once, as it had not before.
    assert (reply.receipt.deferred, reply.usage.requests) == (False, 1)
    assert 4 <= levels["requests"] < 4.1
    assert claude.requests[-1].path == "/v1/messages"


async def test_what_expired_goes_back_to_its_line() -> None:
    config = slow(batch_s=100.0, batch_expires_s=5.0)
    async with deferring(config, paused=1.0) as (claude, scheduler, _):
        (ticket,) = await crowd(scheduler, "one")
        reply = await ticket.result()
    assert not reply.receipt.deferred
    assert [attempt.path for attempt in claude.requests].count("/v1/messages") == 1


async def test_a_batch_that_somebody_cancelled_upstream_fails_its_jobs() -> None:
    async with deferring(slow(batch_s=100.0)) as (claude, scheduler, desk):
        tickets = await crowd(scheduler, "one", "two")
        await until(lambda: len(calls(claude, method="GET")) > 0)
        (batch,) = claude._simulation.batches
        await desk._agent.client.messages.batches.cancel(batch)
        got = await replies(tickets)
    assert [error.kind for error in got] == ["canceled", "canceled"]


async def test_creating_a_batch_is_tried_again() -> None:
    config = slow(
        on("create", effects.Overloaded(), times=2),
        on("create", effects.RateLimited(retry_after=None, retry_after_ms=20), times=1),
        on("create", effects.ResetBeforeHead(), times=1),
    )
    async with deferring(config) as (claude, scheduler, _):
        got = await replies(await crowd(scheduler, "one", "two"))
        assert [attempt.status for attempt in created(claude)] == [529, 529, 429, None, 200]
        waited = created(claude)[3].arrival_ns - created(claude)[2].arrival_ns
    assert [reply.turns for reply in got] == [1, 1]
    assert waited >= 20_000_000


async def test_what_can_never_be_created_fails_its_jobs() -> None:
    config = slow(on("create", effects.ErrorStatus(status=400, message=SECRET)))
    async with deferring(config) as (claude, scheduler, _):
        got = await replies(await crowd(scheduler, SECRET, "two"))
        assert len(created(claude)) == 1
    assert [error.kind for error in got] == ["bad_request", "bad_request"]
    assert got[0] is not got[1]
    assert SECRET not in repr(got)
    assert got[0].__cause__ is got[0].__context__ is None


async def test_what_could_not_be_created_for_long_goes_back_to_its_line() -> None:
    config, quotas = slow(on("create", effects.Overloaded())), Quota(Rate.per_hour(1, burst=5))
    async with deferring(config, paused=1.0, quotas=quotas) as (claude, scheduler, _):
        tickets = await crowd(scheduler, "one", "two")
        got = await replies(tickets)
        assert len(created(claude)) == 30
        levels = (await scheduler.statistics("t0")).levels
    assert 4 <= levels["requests"] < 4.1  # it had not paid before it was deferred
    assert [reply.receipt.deferred for reply in got] == [False, False]


async def test_asking_for_a_batch_is_tried_again() -> None:
    config = slow(
        on("retrieve", effects.ErrorStatus(status=500), times=2),
        on("retrieve", effects.ResetBeforeHead(), times=1),
        on("retrieve", effects.RateLimited(retry_after=None), times=1),
        on("results", effects.Overloaded(), times=1),
        on("results", effects.CloseBeforeHead(), times=1),
    )
    async with deferring(config) as (claude, scheduler, _):
        got = await replies(await crowd(scheduler, "one", "two"))
        assert len([attempt for attempt in claude.requests if attempt.fault]) == 6
        assert len(created(claude)) == 1
    assert [reply.receipt.deferred for reply in got] == [True, True]


async def test_a_batch_that_is_gone_fails_its_jobs() -> None:
    async with deferring() as (claude, scheduler, _):
        tickets = await crowd(scheduler, "one", "two")
        await until(lambda: len(claude._simulation.batches) == 1)
        claude._simulation.batches.clear()
        got = await replies(tickets)
    assert [error.kind for error in got] == ["not_found", "not_found"]


@pytest.mark.parametrize("broken", ["lacking", "no JSON", "no message"])
async def test_results_that_are_none_are_read_again_and_fail_in_the_end(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = {
        "lacking": b"",
        "no JSON": b"{]\n",
        "no message": b'{"custom_id": "%s", "result": {"type": "succeeded", "message": {"id": "m"}}}\n',
    }[broken]
    async with deferring() as (claude, scheduler, _):
        ticket, other = await crowd(scheduler, "one", "two")
        await until(lambda: len(created(claude)) == 1)
        names = [request["custom_id"] for request in bodies(claude)[0]]
        full = b"".join(lines % name.encode() if b"%s" in lines else lines for name in names)
        monkeypatch.setattr(batches, "results_lines", lambda *_: full)
        got = await replies([ticket, other])
        reads = len(calls(claude, "/results", "GET"))
    assert [error.kind for error in got] == ["malformed", "malformed"]
    assert reads == (1 if broken == "no message" else 3)


async def test_what_nobody_expected_fails_the_jobs_of_its_batch_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def odd(answer: object) -> Usage:
        raise LookupError(SECRET)

    async with deferring() as (_, scheduler, _):
        monkeypatch.setattr("agent.batch.usage_of", odd)
        got = await replies(await crowd(scheduler, "one", "two"))
        assert [(type(error), error.kind) for error in got] == [(UpstreamError, "malformed")] * 2
        assert SECRET not in "".join(traceback.format_exception(got[0]))
        monkeypatch.undo()
        (reply,) = await replies(await crowd(scheduler, "three"))
        assert reply.receipt.deferred


async def test_a_failure_that_its_job_is_too_late_for_leaves_no_complaint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The job is cancelled in the very turn of the loop in which its batch fails."""
    letter = Letter(lambda letter: Batch(None, 1, lambda: 0.0, lambda _: None, 1), None, {})  # type: ignore[arg-type]
    async with letter:
        letter.answered(UpstreamError("overloaded"), None)
        letter.answered(UpstreamError("timeout"), None)
    del letter
    gc.collect()
    assert "never retrieved" not in caplog.text
