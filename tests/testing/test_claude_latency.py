"""How long answers take. Only lower bounds: a busy machine may be late, and the simulated one never early."""

import asyncio

import anthropic
import pytest

from scheduler.testing import Latency, SimulatedClaude
from scheduler.testing.claude.oracle import Attempt
from tests.testing.claude_client import asked, collect, create, quick, sdk, until

MS = 1_000_000
EXACT = {"jitter": 0.0, "prefill_tps": None}


async def one(latency: Latency, *, stream: bool = False, text: str = "hi", reply_tokens: int = 12) -> Attempt:
    """Ask once at a hundredth of the time, and return the record."""
    config = quick(latency=latency, time_scale=0.01, reply_tokens=reply_tokens)
    async with SimulatedClaude(config, seed=5) as claude, sdk(claude) as client:
        if stream:
            await collect(client, max_tokens=1000)
        else:
            await create(client, text, max_tokens=1000)
        return claude.requests[0]


def took_ns(attempt: Attempt) -> int:
    assert attempt.end_ns is not None
    return attempt.end_ns - attempt.arrival_ns


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_takes_the_first_token_and_its_decoding(stream: bool) -> None:
    attempt = await one(Latency(ttft_base_s=2, decode_tps=10, **EXACT), stream=stream, reply_tokens=60)  # type: ignore[arg-type]
    assert attempt.ttft_ns is not None
    assert took_ns(attempt) >= 79 * MS
    assert attempt.ttft_ns >= (20 if stream else 79) * MS
    if stream:
        assert attempt.ttft_ns < took_ns(attempt) - 40 * MS


async def test_a_long_prompt_delays_the_first_token() -> None:
    latency = Latency(ttft_base_s=0, jitter=0, prefill_tps=1000, decode_tps=None)
    assert took_ns(await one(latency, text="x" * 4 * 8_000)) >= 80 * MS


async def test_jitter_follows_from_the_seed() -> None:
    latency = Latency(ttft_base_s=1, jitter=1.0, prefill_tps=None, decode_tps=None)
    times: list[list[int]] = []
    draws: list[float] = []
    for _ in range(2):
        async with (
            SimulatedClaude(quick(latency=latency, time_scale=0.01), seed=5) as claude,
            sdk(claude) as client,
        ):
            for _ in range(6):
                await create(client)
            times.append([attempt.ttft_ns or 0 for attempt in claude.requests])
            draws = [claude._simulation.draw(n, "ttft").lognormvariate(0, 1.0) for n in range(1, 7)]
    for run in times:
        assert all(ttft_ns >= 10 * MS * draw for ttft_ns, draw in zip(run, draws, strict=True))
    assert max(draws) > 2 * min(draws)


async def test_above_capacity_decoding_slows_down_and_above_twice_it_is_overloaded() -> None:
    latency = Latency(ttft_base_s=0, decode_tps=12, capacity=2, **EXACT)  # type: ignore[arg-type]
    async with SimulatedClaude(quick(latency=latency, time_scale=0.1)) as claude, sdk(claude) as client:
        await create(client)
        alone_ns = took_ns(claude.requests[0])
        tasks = [asyncio.ensure_future(create(client)) for _ in range(4)]
        await until(lambda: claude.stats().in_flight == 4)
        with pytest.raises(anthropic.OverloadedError):
            await create(client)
        await asyncio.gather(*tasks)
        crowded_ns = min(took_ns(attempt) for attempt in claude.requests[1:5])
        assert claude.requests[5].decision == "overloaded"
        assert claude.stats().overloaded == 1
    # Alone one second; four on the capacity of two start at half that speed.
    assert alone_ns >= 99 * MS
    assert crowded_ns >= 130 * MS


async def test_a_stream_arrives_piece_by_piece() -> None:
    latency = Latency(ttft_base_s=0, decode_tps=10, chunk_tokens_max=1, **EXACT)  # type: ignore[arg-type]
    async with SimulatedClaude(quick(latency=latency, time_scale=0.1)) as claude, sdk(claude) as client:
        loop = asyncio.get_running_loop()
        stream = await client.messages.create(**asked(stream=True))
        times = [loop.time() async for event in stream if event.type == "content_block_delta"]
    assert len(times) == 12
    assert times[-1] - times[0] >= 0.08
