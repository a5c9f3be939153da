"""Forgetting a tenant in process: what waits and what runs is cancelled, its bucket stays."""

from __future__ import annotations

import asyncio

import pytest

from scheduler import JobFailed, Scheduler
from scheduler.testing.virtual import VirtualClock
from tests.runtime.harness import KNOWN, Notes, turns, virtual


@virtual
async def test_waiting_and_running_jobs_are_cancelled_and_the_bucket_stays() -> None:
    notes = Notes(takes=100.0)
    async with Scheduler(notes, quotas=KNOWN, clock=VirtualClock()) as scheduler:
        other = asyncio.create_task(scheduler.submit("umbra", "other"))
        calls = [asyncio.create_task(scheduler.submit("acme", n)) for n in map(str, range(8))]
        tickets = [await scheduler.enqueue("acme", f"queued {n}") for n in range(2)]
        await turns(3)
        await scheduler.forget("acme")
        for result in (*calls, *(ticket.result() for ticket in tickets)):
            with pytest.raises(JobFailed) as failed:
                await result
            assert failed.value.kind == "cancelled"
        statistics = await scheduler.statistics("acme")
        assert (statistics.waiting, statistics.running) == (0, 0)
        assert statistics.levels["requests"] < 1, "nobody gets a full bucket by being forgotten"
        assert not other.done()
        await other


@virtual
async def test_a_handler_that_is_about_to_begin_is_cancelled_too() -> None:
    async with Scheduler(Notes(takes=100.0), quotas=KNOWN, clock=VirtualClock()) as scheduler:
        ticket = await scheduler.enqueue("acme", "just granted")
        await scheduler.forget("acme")
        with pytest.raises(JobFailed, match="cancelled"):
            await ticket.result()


@virtual
async def test_a_call_of_admit_that_waits_is_told_and_a_block_that_runs_goes_on() -> None:
    async with Scheduler(quotas=KNOWN, clock=VirtualClock()) as scheduler:

        async def wait() -> None:
            async with scheduler.admit("acme"):
                raise AssertionError("it never gets there")

        for _ in range(4):
            async with scheduler.admit("acme"):
                pass
        async with scheduler.admit("acme"):
            waiting = asyncio.create_task(wait())
            await turns(2)
            await scheduler.forget("acme")
            with pytest.raises(JobFailed, match="cancelled"):
                await waiting
        with pytest.raises(ValueError, match=r"^tenant: "):
            await scheduler.forget("")


@virtual
@pytest.mark.parametrize("session", ["", "x" * 513])
async def test_a_session_has_a_name_of_1_to_512_characters(session: str) -> None:
    async with Scheduler(Notes(), quotas=KNOWN, clock=VirtualClock()) as scheduler:
        with pytest.raises(ValueError, match=r"^session: must have 1 to 512 characters, got "):
            await scheduler.enqueue("acme", "x", session=session)
