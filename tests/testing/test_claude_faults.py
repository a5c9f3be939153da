"""What the SDK makes of every damaged answer, and which requests a fault hits."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import anthropic
import httpx2
import pytest

from scheduler.testing import Fault, Latency, Match, SimulatedClaude, damage, effects
from scheduler.testing.claude.damage import EFFECTS_DURING
from scheduler.testing.claude.effects import EFFECTS_BEFORE
from scheduler.testing.claude.faults import FaultDeck
from scheduler.testing.claude.oracle import Attempt
from tests.testing.claude_client import (
    MODEL,
    asked,
    call,
    collect,
    connection,
    create,
    quick,
    request_bytes,
    sdk,
    text_of,
    until,
)  # fmt: skip

ONE_BY_ONE = Latency(ttft_base_s=0, prefill_tps=None, decode_tps=None, jitter=0, chunk_tokens_max=1)


def damaged(effect: effects.Effect, **fields: Any) -> SimulatedClaude:
    return SimulatedClaude(quick(Fault(effect), **{"latency": ONE_BY_ONE, **fields}))


async def streamed(claude: SimulatedClaude, **options: Any) -> tuple[list[Any], BaseException | None]:
    """The events of a stream, and what broke it."""
    events: list[Any] = []
    async with sdk(claude, **options) as client:
        try:
            async for event in await client.messages.create(**asked(stream=True)):
                events.append(event)  # noqa: PERF401 - what came before the error counts
        except Exception as error:
            return events, error
    return events, None


def deltas(events: list[Any]) -> int:
    return sum(event.type == "content_block_delta" for event in events)


@pytest.mark.parametrize("effect", [damage.ResetMidStream(3), damage.CloseMidStream(3)])
async def test_a_stream_that_breaks_raises_a_raw_transport_error_and_is_not_retried(
    effect: effects.Effect,
) -> None:
    async with damaged(effect) as claude:
        events, error = await streamed(claude, max_retries=2)
        attempts = claude.requests
    assert isinstance(error, httpx2.TransportError)
    assert not isinstance(error, anthropic.AnthropicError)
    assert deltas(events) == 3
    assert len(attempts) == 1
    assert (attempts[0].decision, attempts[0].fault, attempts[0].disconnect_ns) == (
        "admitted",
        effect.kind,
        None,
    )


@pytest.mark.parametrize("effect", [damage.ResetMidStream(), damage.CloseMidStream(), damage.CutBody()])
async def test_a_plain_body_cut_short_is_a_connection_error(effect: effects.Effect) -> None:
    async with damaged(effect) as claude, sdk(claude) as client:
        with pytest.raises(anthropic.APIConnectionError):
            await create(client)
        assert claude.requests[0].status == 200


async def test_a_stream_cut_in_the_middle_of_its_bytes_is_a_transport_error() -> None:
    async with damaged(damage.CutBody()) as claude:
        events, error = await streamed(claude)
    assert isinstance(error, httpx2.TransportError)
    assert 0 < deltas(events) < 12


async def test_a_reset_is_a_reset_and_a_close_is_a_close() -> None:
    async with damaged(damage.ResetMidStream(None)) as claude, connection(claude) as (reader, writer):
        writer.write(request_bytes("/v1/messages", asked(stream=True)))
        with pytest.raises(ConnectionResetError):
            await reader.read(-1)
    async with damaged(damage.CloseMidStream(None)) as claude, connection(claude) as (reader, writer):
        writer.write(request_bytes("/v1/messages", asked(stream=True)))
        data = await reader.read(-1)
    assert data.startswith(b"HTTP/1.1 200")
    assert not data.endswith(b"0\r\n\r\n")


async def test_a_truncated_stream_ends_without_a_word() -> None:
    async with (
        damaged(damage.Truncate(2)) as claude,
        sdk(claude) as client,
        client.messages.stream(**asked()) as stream,
    ):
        message = await stream.get_final_message()
    assert message.stop_reason is None
    assert message.usage.output_tokens == 1
    assert len(text_of(message).split()) == 2


async def test_a_truncated_plain_body_is_broken_json() -> None:
    async with damaged(damage.Truncate()) as claude, sdk(claude) as client:
        with pytest.raises(json.JSONDecodeError):
            await create(client)


@pytest.mark.parametrize(("after", "seen"), [(None, 0), (0, 0), (4, 4), (99, 12)])
async def test_an_error_event_is_a_status_error_with_status_200(after: int | None, seen: int) -> None:
    async with damaged(damage.ErrorEvent(after)) as claude:
        events, error = await streamed(claude, max_retries=2)
        assert len(claude.requests) == 1
        identifier = claude.requests[0].request_id
    assert type(error) is anthropic.APIStatusError
    assert (error.status_code, error.type) == (200, "overloaded_error")
    assert isinstance(error.body, dict)
    assert error.body["request_id"] == identifier
    assert deltas(events) == seen
    assert bool(events) == (after is not None)


async def test_an_error_event_can_be_of_any_type() -> None:
    async with damaged(damage.ErrorEvent(1, type="rate_limit_error", message="slow down")) as claude:
        _, error = await streamed(claude)
    assert isinstance(error, anthropic.APIStatusError)
    assert (error.type, error.api_message) == ("rate_limit_error", "slow down")


async def test_a_plain_answer_with_an_error_inside_raises_nothing() -> None:
    async with damaged(damage.ErrorEvent()) as claude, sdk(claude) as client:
        message = await create(client)
    assert message.type == "error"  # type: ignore[comparison-overlap]
    assert message.content is None


async def test_broken_json_is_a_raw_decode_error_and_not_retried() -> None:
    async with damaged(damage.MalformedJson(2)) as claude:
        events, error = await streamed(claude, max_retries=2)
        async with sdk(claude, max_retries=2) as client:
            with pytest.raises(json.JSONDecodeError):
                await create(client)
        assert len(claude.requests) == 2
    assert isinstance(error, json.JSONDecodeError)
    assert deltas(events) == 2


async def test_a_wrong_shape_raises_nothing_and_has_no_content() -> None:
    async with damaged(damage.WrongShape()) as claude, sdk(claude) as client:
        message = await create(client)
        events = await collect(client)
        with pytest.raises(AssertionError):
            async with client.messages.stream(**asked()) as stream:
                await stream.get_final_message()
    assert message.content is None
    assert events == []


async def test_an_event_without_its_blank_line_is_lost() -> None:
    async with damaged(damage.LostLastEvent()) as claude:
        events, error = await streamed(claude)
        async with sdk(claude) as client:
            plain = await create(client)
    assert error is None
    assert [event.type for event in events][-1] == "message_delta"
    assert plain.stop_reason == "end_turn"


async def test_silence_after_the_head_is_a_raw_read_timeout() -> None:
    for after, seen in ((None, 0), (2, 2)):
        async with damaged(damage.Stall(after, seconds=60)) as claude:
            events, error = await streamed(claude, timeout=0.1, max_retries=2)
            assert len(claude.requests) == 1
        assert isinstance(error, httpx2.ReadTimeout)
        assert deltas(events) == seen


async def test_silence_ends_and_the_answer_goes_on() -> None:
    async with damaged(damage.Stall(2, seconds=5), time_scale=0.01) as claude:
        events, error = await streamed(claude)
        attempt = claude.requests[0]
    assert error is None
    assert deltas(events) == 12
    assert attempt.end_ns is not None
    assert attempt.end_ns - attempt.arrival_ns >= 50_000_000


@pytest.mark.parametrize("keep_alive", ["ping", "comment"])
async def test_pings_and_comments_before_the_message_hold_a_stream_open(keep_alive: damage.KeepAlive) -> None:
    stall = damage.Stall(None, seconds=0.7, keep_alive=keep_alive, interval_s=0.05)
    async with damaged(stall) as claude:
        events, error = await streamed(claude, timeout=0.5)
    assert error is None
    assert (events[0].type, events[-1].type, deltas(events)) == ("message_start", "message_stop", 12)


async def test_blanks_before_the_body_hold_a_plain_answer_open() -> None:
    stall = damage.Stall(seconds=0.7, keep_alive="space", interval_s=0.05)
    async with damaged(stall) as claude, sdk(claude, timeout=0.5) as client:
        message = await create(client)
    assert message.usage.output_tokens == 12


async def test_silence_before_a_plain_body_is_a_timeout() -> None:
    async with damaged(damage.Stall(seconds=60)) as claude, sdk(claude, timeout=0.1) as client:
        with pytest.raises(anthropic.APITimeoutError):
            await create(client)
        assert claude.requests[0].status == 200


# Both take longer than the read timeout below; a stream has more bytes.
SLOW = {False: damage.SlowLoris(size=12, interval_s=0.02), True: damage.SlowLoris(size=60, interval_s=0.02)}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_dribbled_body_never_times_out(stream: bool) -> None:
    async with damaged(SLOW[stream]) as claude, sdk(claude, timeout=0.5) as client:
        if stream:
            async with client.messages.stream(**asked()) as opened:
                message: Any = await opened.get_final_message()
        else:
            message = await create(client)
        attempt = claude.requests[0]
    assert message.usage.output_tokens == 12
    assert attempt.end_ns is not None
    assert attempt.end_ns - attempt.arrival_ns >= 0.02e9 * (attempt.bytes_out // SLOW[stream].size)


async def test_no_ping_comes_in_the_middle_of_an_event_that_dribbles() -> None:
    latency = replace(ONE_BY_ONE, ping_every_s=0.001)
    async with damaged(damage.SlowLoris(size=60, interval_s=0.01), latency=latency) as claude:
        events, error = await streamed(claude)
    assert error is None
    assert (events[-1].type, deltas(events)) == ("message_stop", 12)


async def test_only_the_callers_deadline_stops_a_dribble() -> None:
    async with damaged(damage.SlowLoris(size=1, interval_s=0.05)) as claude, sdk(claude, timeout=1) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(create(client), 0.2)
        await until(lambda: claude.requests[0].end_ns is not None)
        assert claude.requests[0].cancelled


@pytest.mark.parametrize("stream", [False, True])
async def test_interim_responses_hold_any_call_open(stream: bool) -> None:
    slow = effects.SlowHeaders(0.7, interim_every_s=0.05)
    async with damaged(slow) as claude, sdk(claude, timeout=0.5) as client:
        if stream:
            assert deltas(await collect(client)) == 12
        else:
            assert (await create(client)).usage.output_tokens == 12


@pytest.mark.parametrize("stream", [False, True])
async def test_interim_responses_leave_the_status_free(stream: bool) -> None:
    slow = effects.SlowHeaders(0.2, interim_every_s=0.05, status=429, retry_after=7)
    async with damaged(slow) as claude, sdk(claude) as client:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await client.messages.create(**asked(stream=stream))
    assert caught.value.response.headers["retry-after"] == "7"


async def test_interim_responses_are_on_the_wire() -> None:
    slow = effects.SlowHeaders(4, interim_every_s=1)
    async with damaged(slow, time_scale=0.001) as claude, connection(claude) as (reader, writer):
        writer.write(request_bytes("/v1/messages", asked()))
        heads = [(await reader.readuntil(b"\r\n\r\n")).split(b" ")[1] for _ in range(5)]
    assert heads == [b"102"] * 4 + [b"200"]


async def test_every_effect_has_a_kind_of_its_own_and_is_tried_against_both_manners() -> None:
    every = [*EFFECTS_BEFORE, *EFFECTS_DURING]
    assert len({effect.kind for effect in every}) == len(every) == 20
    for effect in every:
        made = effects.SlowHeaders(0.01) if effect is effects.SlowHeaders else effect()
        async with SimulatedClaude(quick(Fault(made), time_scale=0.001)) as claude:
            for stream in (False, True):
                async with connection(claude) as (reader, writer):
                    writer.write(request_bytes("/v1/messages", asked(stream=stream), headers=CLOSING))
                    try:
                        await reader.read(-1)
                    except ConnectionResetError:
                        assert "reset" in effect.kind
            assert claude.stats().faults == {effect.kind: 2}
            assert claude.stats().in_flight == 0


CLOSING = {"x-api-key": "k", "anthropic-version": "2023-06-01", "connection": "close"}


def hits(faults: tuple[Fault, ...], count: int, *, seed: int = 0, tenant: str | None = None) -> list[int]:
    deck = FaultDeck(faults, seed)
    return [n for n in range(1, count + 1) if deck.choose(n, MODEL, tenant, 0.0) is not None]


def test_which_requests_are_hit() -> None:
    fault = effects.Overloaded()
    assert hits((Fault(fault),), 4) == [1, 2, 3, 4]
    assert hits((Fault(fault, times=2),), 4) == [1, 2]
    assert hits((Fault(fault, Match(nth=3)),), 9) == [3]
    assert hits((Fault(fault, Match(every=3)),), 9) == [3, 6, 9]
    assert hits((Fault(fault, Match(every=3), times=2),), 9) == [3, 6]
    assert hits((Fault(fault, Match(model="claude-sonnet-5")),), 3) == []
    assert hits((Fault(fault, Match(tenant="a")),), 3, tenant="b") == []
    assert hits((Fault(fault, Match(tenant="a")),), 3, tenant="a") == [1, 2, 3]
    assert hits((Fault(fault, Match(probability=0)),), 50) == []


def test_counts_are_of_the_requests_that_match() -> None:
    deck = FaultDeck((Fault(effects.Overloaded(), Match(tenant="a", nth=2)),), 0)
    tenants = ["b", "a", "b", "a", "a"]
    chosen = [deck.choose(n, MODEL, tenant, 0.0) is not None for n, tenant in enumerate(tenants, 1)]
    assert chosen == [False, False, False, True, False]


def test_the_first_fault_that_matches_is_the_one_and_every_fault_counts() -> None:
    first, second = Fault(effects.Ramp(), Match(nth=2)), Fault(effects.Overloaded(), Match(every=2))
    deck = FaultDeck((first, second), 0)
    assert [deck.choose(n, MODEL, None, 0.0) for n in range(1, 5)] == [None, first, None, second]


def test_probability_follows_from_the_seed_and_the_number() -> None:
    faults = (Fault(effects.Overloaded(), Match(probability=0.3)),)
    once = hits(faults, 1000, seed=1)
    assert once == hits(faults, 1000, seed=1)
    assert once != hits(faults, 1000, seed=2)
    assert 230 < len(once) < 370


def test_an_episode_is_a_window_of_simulated_time() -> None:
    deck = FaultDeck((Fault.overload_episode(10, 5),), 0)
    assert [deck.choose(1, MODEL, None, at_s) is not None for at_s in (0, 9.9, 10, 14.9, 15)] == [
        False, False, True, True, False,
    ]  # fmt: skip


async def test_an_episode_comes_and_goes() -> None:
    async with SimulatedClaude(quick(Fault.overload_episode(0, 20), time_scale=0.01)) as claude:
        statuses = [(await call(claude, "/v1/messages", asked())).status]
        while statuses[-1] == 529:
            statuses.append((await call(claude, "/v1/messages", asked())).status)
        first_good: Attempt = claude.requests[-1]
        assert first_good.arrival_ns - claude.requests[0].arrival_ns >= 150_000_000
    assert set(statuses[:-1]) == {529}
    assert statuses[-1] == 200


async def test_faults_can_be_added_and_taken_away_while_it_runs() -> None:
    async with SimulatedClaude(quick()) as claude:
        claude.add_faults(Fault(effects.Overloaded(), Match(nth=2)), Fault(effects.Ramp(), times=1))
        statuses = [(await call(claude, "/v1/messages", asked())).status for _ in range(3)]
        claude.add_faults(Fault(effects.OwnSpendLimit()))
        statuses.append((await call(claude, "/v1/messages", asked())).status)
        assert len(claude.config.faults) == 3
        claude.clear_faults()
        statuses.append((await call(claude, "/v1/messages", asked())).status)
        assert not claude.config.faults
    assert statuses == [429, 529, 200, 400, 200]
