"""`waitline gates`: what an operator sees of the gates of a database, and may do to them."""

from __future__ import annotations

import asyncio

import pytest

from scheduler import Answer, Cost, Quota, Rate, Scheduler, Signal
from scheduler.cli import gates, jobs  # noqa: F401 - they add their commands
from scheduler.cli.app import run
from scheduler.stores.postgres import PostgresStore
from tests.cli.conftest import DATABASE

pytestmark = pytest.mark.timeout(90)

GATES = {"fast": Quota(Rate.per_minute(600, burst=10), concurrency=4), "slow": Quota(concurrency=1)}


def test_a_closed_gate_is_seen_and_opened_and_one_without_jobs_dropped(
    dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE, dsn)
    monkeypatch.setenv("COLUMNS", "200")

    def ask(*arguments: str) -> str:
        assert run(arguments) == 0
        return capsys.readouterr().out

    def refused(*arguments: str) -> str:
        assert run(arguments) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        return shown.err

    async def prepare() -> str:
        store = PostgresStore(dsn)
        async with Scheduler(store=store, quotas=Quota(), gates=GATES) as scheduler:
            async with scheduler.admit("acme", gate="fast", cost=Cost(3)) as grant:
                grant.hear(Signal(Answer.SPEND_LIMIT))
                await store.hearing.noted()
            return (await scheduler.enqueue("acme", "x", gate="slow")).id

    assert ask("gates", "show") == "no gates: gates= declares them\n"
    job = asyncio.run(prepare())
    fast, slow = ask("gates", "show").splitlines()[1:]
    assert "0 of 4" in fast
    assert "requests 600" in fast
    assert "closed: a spending limit was reached, asks again in 3" in fast
    assert slow.split() == ["slow", "0", "of", "1", "1", "no", "limits", "open"]

    assert ask("gates", "resume", "fast") == "fast is open\n"
    assert ask("gates", "show").splitlines()[1].rstrip().endswith("open")
    assert "gate: must be one of ['fast', 'slow'], got 'other'" in refused("gates", "resume", "other")

    left = "gate: 'slow' has 1 jobs that wait or run, and cannot be dropped"
    assert left in refused("gates", "drop", "slow")
    ask("jobs", "cancel", job)
    assert ask("gates", "drop", "slow") == "slow is gone\n"
    gone = f"job: {job} waits for the gate 'slow', which is not there any more"
    assert gone in refused("jobs", "retry", job)
    assert [line.split()[0] for line in ask("gates", "show").splitlines()[1:]] == ["fast"]
