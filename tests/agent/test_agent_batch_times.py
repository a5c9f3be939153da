"""When batches go and are asked for, to the second: the real SDK in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic

from agent import BatchDesk
from scheduler import Scheduler, UpstreamError
from scheduler.testing.virtual import VirtualClock, run_virtual
from tests.agent.claudes import MODEL, Pieces, events, make_agent
from tests.agent.deferring import DEFERRING, crowd, pause, replies

HOUR = 3600.0


class Batches(httpx2.AsyncBaseTransport):
    """One batch after the other, each of which ends `lasts` seconds after it came.

    `refuse`: statuses, with their headers, of the next calls of a kind. `hangs`: which kind gets no
    answer. `calls`: the times of each kind.
    """

    def __init__(self, lasts: float = 100.0) -> None:
        self.lasts = lasts
        self.hangs = ""
        self.refuse: dict[str, list[tuple[int, dict[str, str]]]] = {}
        self.calls: dict[str, list[float]] = {"create": [], "retrieve": [], "results": [], "cancel": []}
        self.batches: dict[str, tuple[float, list[str]]] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(0)
        if request.url.path == "/v1/messages":
            return httpx2.Response(
                200, headers={"content-type": "text/event-stream"}, stream=Pieces(events(["Late."]))
            )
        now, tail = asyncio.get_running_loop().time(), request.url.path.split("/")[4:]
        kind = "create" if not tail else tail[1] if len(tail) > 1 else "retrieve"
        # The SDK asks for the batch again before it reads its results.
        again = kind == "retrieve" and self.calls[kind][-1:] == [now]
        if not again:
            self.calls[kind].append(now)
        if kind == self.hangs:
            await asyncio.sleep(request.extensions["timeout"]["read"])
            raise httpx2.ReadTimeout("nothing came", request=request)
        if self.refuse.get(kind) and not again:
            status, headers = self.refuse[kind].pop(0)
            return httpx2.Response(status, headers=headers, json={"type": "error", "error": {}})
        if kind == "create":
            names = [entry["custom_id"] for entry in json.loads(request.content)["requests"]]
            batch_id = f"msgbatch_{len(self.batches)}"
            self.batches[batch_id] = now, names
        else:
            batch_id = tail[0]
        began, names = self.batches[batch_id]
        if kind == "results":
            lines = b"".join(json.dumps(answered(name)).encode() + b"\n" for name in reversed(names))
            return httpx2.Response(200, stream=Pieces([lines[:40], lines[40:]]))
        ended = now >= began + self.lasts
        told: dict[str, Any] = {
            "id": batch_id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "results_url": f"/v1/messages/batches/{batch_id}/results" if ended else None,
        }
        return httpx2.Response(200, json=told)


def answered(custom_id: str) -> dict[str, Any]:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "In time."}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "cache_creation_input_tokens": 5, "output_tokens": 3},
    }
    return {"custom_id": custom_id, "result": {"type": "succeeded", "message": message}}


@asynccontextmanager
async def deferring(upstream: Batches, **options: Any) -> AsyncIterator[tuple[Scheduler, BatchDesk]]:
    """A scheduler with a paused gate, and a desk with its usual window and polls."""
    async with httpx2.AsyncClient(transport=upstream) as http:
        client = AsyncAnthropic(api_key="sk-test", base_url="http://claude.test", http_client=http)
        agent = make_agent(client)
        # The SDK finds this out in a thread, before its first request; virtual time knows no threads.
        agent.client._platform = "Linux"
        async with (
            BatchDesk(agent, **{"draw": lambda: 1.0, **options}) as desk,
            Scheduler(
                agent.handle, deferred=desk.handle, policy=DEFERRING, clock=VirtualClock()
            ) as scheduler,
        ):
            await pause(scheduler)
            yield scheduler, desk


def test_a_batch_goes_a_window_after_its_first_job_and_is_asked_for_every_minute() -> None:
    async def main() -> None:
        upstream = Batches(lasts=100)
        async with deferring(upstream) as (scheduler, _):
            first = await crowd(scheduler, "a")
            await asyncio.sleep(4)
            second = await crowd(scheduler, "b")
            await asyncio.sleep(2)
            third = await crowd(scheduler, "c")
            got = await replies([*first, *second, *third])
        assert upstream.calls["create"] == [5, 11]
        assert upstream.calls["retrieve"] == [65, 71, 125, 131]
        assert upstream.calls["results"] == [125, 131]
        assert [reply.usage for reply in got] == [reply.receipt.usage for reply in got]
        assert {(reply.usage.input_tokens, reply.usage.output_tokens) for reply in got} == {(15, 3)}

    run_virtual(main())


def test_an_old_batch_is_asked_for_less_often() -> None:
    async def main() -> None:
        upstream = Batches(lasts=20 * HOUR)
        async with deferring(upstream, window=0.001) as (scheduler, _):
            (reply,) = await replies(await crowd(scheduler, "a"))
            assert reply.receipt.deferred
            taken = asyncio.get_running_loop().time()
        times = upstream.calls["retrieve"]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert gaps[:9] == pytest.approx([60.0] * 9)
        assert all(gap <= max(60, at / 10) + 0.01 for at, gap in zip(times, gaps, strict=False))
        assert len(times) < 80
        assert 20 * HOUR <= taken <= 22 * HOUR

    run_virtual(main())


def test_a_batch_that_never_ends_is_given_up_and_its_jobs_go_back_to_their_line() -> None:
    async def main() -> None:
        upstream = Batches(lasts=1000 * HOUR)
        async with deferring(upstream) as (scheduler, _):
            (reply,) = await replies(await crowd(scheduler, "a"))
            taken = asyncio.get_running_loop().time()
        assert (reply.text, reply.receipt.deferred) == ("Late.", False)
        assert 25 * HOUR <= taken <= 28 * HOUR

    run_virtual(main())


def test_creating_backs_off_and_does_as_it_is_told() -> None:
    async def main() -> None:
        upstream = Batches(lasts=1)
        upstream.refuse["create"] = [(529, {}), (500, {}), (429, {"retry-after": "40"}), (503, {})]
        async with deferring(upstream) as (scheduler, _):
            (reply,) = await replies(await crowd(scheduler, "a"))
        assert reply.receipt.deferred
        assert upstream.calls["create"] == [5, 5.5, 6.5, 46.5, 50.5]

    run_virtual(main())


def test_what_comes_while_a_batch_is_being_created_goes_together_in_the_next() -> None:
    async def main() -> None:
        upstream = Batches(lasts=1)
        upstream.refuse["create"] = [(503, {"retry-after": "40"})]
        async with deferring(upstream, max_batch=3) as (scheduler, _):
            tickets = await crowd(scheduler, "a")
            for _ in range(4):
                await asyncio.sleep(10)
                tickets += await crowd(scheduler, "b")
            # Three were enough to go by themselves; the fourth goes with the first.
            assert upstream.calls["create"] == [5, 30]
            got = await replies(tickets)
        assert upstream.calls["create"] == [5, 30, 45, 45]
        assert [reply.receipt.deferred for reply in got] == [True] * 5
        assert sorted(len(names) for _, names in upstream.batches.values()) == [1, 1, 3]

    run_virtual(main())


def test_asking_backs_off_and_does_as_it_is_told() -> None:
    async def main() -> None:
        upstream = Batches(lasts=1)
        upstream.refuse["retrieve"] = [(500, {}), (429, {"retry-after": "240"}), (529, {})]
        upstream.refuse["results"] = [(529, {}), (502, {})]
        async with deferring(upstream) as (scheduler, _):
            (reply,) = await replies(await crowd(scheduler, "a"))
        assert reply.receipt.deferred
        assert upstream.calls["retrieve"] == [65, 125, 365, 425, 485, 545]
        assert upstream.calls["results"] == [425, 485, 545]

    run_virtual(main())


def test_an_outage_of_half_an_hour_is_sat_out_and_a_longer_one_is_not() -> None:
    async def main(failures: int) -> tuple[Any, float]:
        upstream = Batches(lasts=1)
        upstream.refuse["retrieve"] = [(500, {})] * failures
        async with deferring(upstream) as (scheduler, _):
            (reply,) = await replies(await crowd(scheduler, "a"))
            return reply, asyncio.get_running_loop().time()

    reply, taken = run_virtual(main(29))
    assert reply.receipt.deferred
    assert taken > HOUR / 2
    reply, taken = run_virtual(main(30))
    assert not reply.receipt.deferred


def test_a_key_that_is_not_valid_any_more_fails_the_jobs_at_once() -> None:
    async def main() -> None:
        upstream = Batches(lasts=1)
        upstream.refuse["retrieve"] = [(401, {})]
        async with deferring(upstream) as (scheduler, _):
            (error,) = await replies(await crowd(scheduler, "a"))
        assert isinstance(error, UpstreamError)
        assert error.kind == "authentication"
        assert upstream.calls["retrieve"] == [65]

    run_virtual(main())


@pytest.mark.parametrize(
    ("hangs", "moment", "cancelled", "takes"),
    [("create", 70, 0, 20), ("retrieve", 70, 1, 0), ("results", 126, 1, 0), ("cancel", 70, 2, 20)],
)
def test_a_desk_that_does_not_drain_is_closed_soon_whatever_hangs(
    hangs: str, moment: float, cancelled: int, takes: float
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        upstream = Batches(lasts=100.0 if hangs == "results" else HOUR)
        upstream.hangs = hangs
        with suppress(KeyError):
            async with deferring(upstream) as (scheduler, _):
                await crowd(scheduler, "a")
                await asyncio.sleep(moment)
                closing = loop.time()
                raise KeyError
        assert len(upstream.calls["cancel"]) == cancelled
        assert loop.time() - closing == takes

    run_virtual(main())


def test_a_deferred_job_is_not_bound_by_the_run_timeout_and_pays_nothing() -> None:
    async def main() -> None:
        upstream = Batches(lasts=5 * HOUR)
        async with deferring(upstream) as (scheduler, _):
            before = (await scheduler.statistics()).gates[""].slots
            got = await replies(await crowd(scheduler, *"abc"))
            assert (await scheduler.statistics()).gates[""].slots == before
        assert [reply.receipt.deferred for reply in got] == [True] * 3

    run_virtual(main())
