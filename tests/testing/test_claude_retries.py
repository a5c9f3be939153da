"""What the installed SDK retries, and how long it waits: each row is a tenant of one simulated API."""

import asyncio

import anthropic
import pytest

from scheduler.testing import Fault, Match, SimulatedClaude, damage, effects
from scheduler.testing.claude.effects import Effect
from tests.testing.claude_client import create, quick, sdk

SECOND_NS = 1_000_000_000

# Wide, because a busy machine may be late, but less than the nine seconds that one row must not wait.
WAIT_S_MAX = 5.0

# The effect of the first attempt, the attempts with one retry, and the shortest wait before the second.
ROWS: dict[str, tuple[Effect, int, float]] = {
    "seconds": (effects.RateLimited(retry_after=1), 2, 1.0),
    "fraction": (effects.RateLimited(retry_after=0.25), 2, 0.25),
    "milliseconds first": (effects.RateLimited(retry_after=9, retry_after_ms=300), 2, 0.3),
    "zero is the default backoff": (effects.RateLimited(retry_after=0), 2, 0.37),
    "garbage is the default backoff": (effects.RateLimited(retry_after="soon"), 2, 0.37),
    "none is the default backoff": (effects.RateLimited(retry_after=None), 2, 0.37),
    "a date loses up to a second": (effects.RateLimited(retry_after_date_s=1.5), 2, 0.37),
    "overloaded": (effects.Overloaded(), 2, 0.37),
    "overloaded with a wait": (effects.Overloaded(retry_after=0.6), 2, 0.6),
    "ramp": (effects.Ramp(retry_after=0.2), 2, 0.2),
    "spend cap, in vain": (effects.SpendCap(), 2, 0.37),
    "own spend limit": (effects.OwnSpendLimit(), 1, 0),
    "told not to": (effects.ShouldRetry(), 1, 0),
    "told to": (effects.ShouldRetry(status=400, should_retry=True, retry_after_ms=10), 2, 0.01),
    "reset": (effects.ResetBeforeHead(), 2, 0.37),
    "close": (effects.CloseBeforeHead(), 2, 0.37),
    "cut body": (damage.CutBody(), 2, 0.37),
    **{
        f"status {status}": (effects.ErrorStatus(status=status), 1, 0)
        for status in (400, 401, 402, 403, 404, 413, 422)
    },
    **{
        f"status {status}": (effects.ErrorStatus(status=status), 2, 0.37)
        for status in (408, 409, 500, 502, 503, 504)
    },
}  # fmt: skip


async def attempts_of(claude: SimulatedClaude, max_retries: int) -> dict[str, list[int]]:
    """Ask once for every row, all at the same time, and return when the attempts of each arrived."""
    async with sdk(claude, max_retries=max_retries) as client:
        asks = (create(client, tenant=row) for row in ROWS)
        results = await asyncio.gather(*asks, return_exceptions=True)
    unexpected = [
        result for result in results if not isinstance(result, anthropic.types.Message | anthropic.APIError)
    ]
    assert unexpected == []
    arrivals: dict[str, list[int]] = {row: [] for row in ROWS}
    for attempt in claude.requests:
        arrivals[attempt.tenant or ""].append(attempt.arrival_ns)
    return arrivals


async def test_the_retry_table_of_the_installed_sdk() -> None:
    faults = tuple(Fault(effect, Match(tenant=row), times=1) for row, (effect, *_) in ROWS.items())
    async with SimulatedClaude(quick(*faults)) as claude:
        arrivals = await attempts_of(claude, max_retries=1)
        retried = {attempt.tenant for attempt in claude.requests if attempt.retry_count == 1}
    assert {row: len(times) for row, times in arrivals.items()} == {
        row: count for row, (_, count, *_) in ROWS.items()
    }
    assert retried == {row for row, (_, count, *_) in ROWS.items() if count == 2}
    waits = {row: (times[-1] - times[0]) / SECOND_NS for row, times in arrivals.items()}
    # The client counts from the end of the first attempt, so that the arrivals are never closer.
    assert {row: wait for row, wait in waits.items() if not ROWS[row][2] <= wait <= WAIT_S_MAX} == {}


async def test_without_retries_every_outcome_is_exactly_one_attempt() -> None:
    faults = tuple(Fault(effect, Match(tenant=row)) for row, (effect, *_) in ROWS.items())
    async with SimulatedClaude(quick(*faults)) as claude:
        arrivals = await attempts_of(claude, max_retries=0)
        assert claude.stats().retries == 0
        assert claude.stats().faults == {
            kind: sum(effect.kind == kind for effect, *_ in ROWS.values())
            for kind in {e.kind for e, *_ in ROWS.values()}
        }
    assert {row: len(times) for row, times in arrivals.items()} == dict.fromkeys(ROWS, 1)


async def test_a_long_retry_after_is_slept_and_not_replaced() -> None:
    async with SimulatedClaude(quick(Fault(effects.RateLimited(retry_after=90)))) as claude:
        async with sdk(claude, max_retries=2) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(create(client), 0.8)
        assert len(claude.requests) == 1


async def test_the_default_chain_is_three_attempts_and_counts_them() -> None:
    async with SimulatedClaude(quick(Fault(effects.Overloaded(retry_after=0.01)))) as claude:
        async with sdk(claude, max_retries=2) as client:
            with pytest.raises(anthropic.InternalServerError):
                await create(client)
        assert [attempt.retry_count for attempt in claude.requests] == [0, 1, 2]
        assert (claude.stats().retries, claude.stats().overloaded) == (2, 3)
