"""What no column takes is refused before it comes so far; where it does, it fails its own call alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import Cost, ErrRateLimited, Job, Policy, Quota, Rate, Scheduler, Usage
from scheduler.core.quota import ONE
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import Unkept
from scheduler.stores.values import Accepted, Request
from scheduler.worker import Worker
from tests.stores.working import QUICK, working

PATIENT = Policy(max_wait=None)
MARK = "xyzzy-secret"

BAD: dict[str, dict[str, Any]] = {
    "NUL": {"tenant": "a\0b"},
    "lone surrogate": {"tenant": "a\ud800"},
    "session": {"session": "s\0"},
    "key": {"key": "\ud800"},
    "number": {"cost": Cost(1, 1, 0), "head_start": 1 << 70},
    "time": {"timeout": 1 << 70},
}
"""Requests that no scheduler makes."""


def request(**said: Any) -> Request:
    return Request("acme", f'"{MARK}"', QUICK, PATIENT, ONE)._replace(**said)


@pytest.mark.parametrize("said", BAD.values(), ids=BAD)
async def test_what_cannot_be_kept_fails_its_own_call_and_no_other(dsn: str, said: dict[str, Any]) -> None:
    """They go in one batch, and its error does not show what else was in there."""
    async with PostgresStore(dsn) as store:
        calls = [request(), request(tenant="bolt", key="k"), request(**said), request(session=MARK)]
        first, second, wrong, last = await asyncio.gather(*map(store.submit, calls), return_exceptions=True)
        assert all(isinstance(answer, Accepted) for answer in (first, second, last))
        assert isinstance(wrong, Unkept)
        assert MARK not in str(wrong)
        assert "bolt" not in str(wrong)
        assert wrong.__cause__ is None
        assert (await store.count(None))["waiting"] == 3


async def test_of_many_in_one_call_none_is_kept(dsn: str) -> None:
    async with PostgresStore(dsn) as store:
        with pytest.raises(Unkept):
            await store.submit_together([request(), request(tenant="a\0")])
        assert (await store.count(None))["waiting"] == 0


# --- times that are too far away ------------------------------------------------------------------------

SLOW = Quota(Rate(1, per=4_000_000_000))
"""One in 127 years."""


@pytest.mark.parametrize("gates", [None, Quota()], ids=["plain", "gate"])
@pytest.mark.parametrize("cost", [None, Cost(1, 5)], ids=["one", "other"])
async def test_who_would_have_to_wait_for_centuries_is_refused(
    dsn: str, gates: Any, cost: Cost | None
) -> None:
    """In memory as well. Nobody else is concerned, and what is due then is waited for."""
    settings: dict[str, Any] = {"quotas": {"slow": SLOW, "acme": QUICK}, "gates": gates, "policy": PATIENT}

    async def answers(scheduler: Scheduler) -> list[Any]:
        found: list[Any] = []
        for tenant in ("slow", "slow", "slow", "acme"):
            call = scheduler.enqueue(tenant, "x", cost=cost)
            found += await asyncio.gather(call, return_exceptions=True)
        return found

    async with working(dsn), Scheduler(store=PostgresStore(dsn), **settings) as scheduler:
        stored = await answers(scheduler)
        for ticket in (stored[0], stored[3]):
            await ticket.result()
    async with Scheduler(handler=_returns, **settings) as scheduler:
        known = await answers(scheduler)
        await scheduler.aclose(drain=False)
    for _, near, far, _ in (stored, known):
        assert 3.9e9 < near.wait <= 4e9
        assert isinstance(far, ErrRateLimited)
        assert far.reason == "max_wait"
        assert 7.9e9 < far.retry_after <= 8e9


async def _returns(job: Job) -> None:
    return None


ONE_SLOT = Quota(Rate(1000, burst=100), output_tokens=Rate(100, burst=1000), concurrency=1)
PLAIN = Quota(Rate(1000, burst=100), concurrency=1)
GATES = {"a": Quota(output_tokens=Rate(10**6)), "b": Quota()}
MOST = Usage(1, 5, 2**63 - 1)
ABSURD: dict[str, tuple[Any, Quota, Usage | None]] = {
    "settled": (None, ONE_SLOT, MOST),
    "settled at a gate": (GATES, ONE_SLOT, MOST),
    "that comes": (None, ONE_SLOT, None),
    "that comes at a gate": (GATES, ONE_SLOT, None),
    "of requests": (None, PLAIN, Usage(2**63 - 1)),
    "of a gate": (GATES, Quota(concurrency=1), MOST),
}


@pytest.mark.parametrize(("gates", "quota", "usage"), ABSURD.values(), ids=ABSURD)
async def test_absurd_usage_stops_its_own_tenant_only(
    dsn: str, gates: Any, quota: Quota, usage: Usage | None
) -> None:
    """What its buckets owe then is beyond all times that can be told."""
    go = asyncio.Event()

    async def handler(job: Job) -> None:
        if job.tenant != "absurd":
            return
        await go.wait()
        with pytest.raises(ValueError, match=r"output_tokens: must be below 2\^63, got 10{19}$"):
            job.grow(10**19)
        if usage is not None:
            job.settle(usage)
        else:
            job.grow(2**63 - 1)

    settings = {"quotas": quota, "gates": gates, "policy": PATIENT}
    there: dict[str, Any] = {"cost": Cost(1, 0, 5), "gate": "a" if gates else None}
    async with working(dsn, handler), Scheduler(store=PostgresStore(dsn), **settings) as scheduler:
        first, *others = [await scheduler.enqueue("absurd", "x", **there) for _ in range(3)]
        go.set()
        await first.result()
        with pytest.raises(ErrRateLimited, match="max_wait"):
            await scheduler.submit("absurd", "x", **there)
        for _ in range(3):
            assert await scheduler.submit("acme", "x", gate="b" if gates else None) is None
        for ticket in others:
            assert (await scheduler.ticket(ticket.id, tenant="absurd")).state == "waiting"
            ticket.cancel()
        await scheduler.forget("absurd")
        assert await scheduler.store.prune() == 0  # type: ignore[attr-defined]


async def test_a_worker_and_a_store_check_what_they_are_given(dsn: str) -> None:
    for wrong in ({"lease": 1e10}, {"keep": 1e10}, {"keep_sessions": 1e10}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: must be at most 4611686018 seconds"):
            PostgresStore(dsn, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"name: must be valid Unicode without NUL, got 'w\\x00'"):
        Worker(_returns, PostgresStore(dsn), name="w\0")
    for name in ("", "w" * 600):
        with pytest.raises(ValueError, match=f"name: must have 1 to 512 characters, got {len(name)}"):
            Worker(_returns, PostgresStore(dsn), name=name)
