"""Agents whose messages are covered by a request: what their calls use and tell is the request's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from agent import Agent
from scheduler import Cost, Policy, Quota, Rate, Scheduler
from scheduler.http import WaitlineMiddleware
from scheduler.testing.virtual import VirtualClock, run_virtual
from tests.agent.claudes import InMemoryClaude, in_memory, tool
from tests.agent.scheduled import DONE, LOOK, WIDE, used

GATE = Quota(Rate(100, burst=100), concurrency=20)


class Route:
    """An app of one agent: each request is a conversation of its own."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = await self.agent.new_session("acme")
        await self.agent.run(session.id, "look")
        await self.answer(send)

    @staticmethod
    async def answer(send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


async def get(app: Any) -> int:
    """The status of one request."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "headers": []}, receive, send)
    status: int = sent[0]["status"]
    return status


def around(app: Any, scheduler: Scheduler, **options: Any) -> WaitlineMiddleware:
    return WaitlineMiddleware(app, scheduler=scheduler, tenant=lambda scope: "acme", **options)


@asynccontextmanager
async def routed(
    *answers: Any, cost: Cost | None = None, **options: Any
) -> AsyncIterator[tuple[InMemoryClaude, WaitlineMiddleware, Scheduler]]:
    """An agent in memory behind the middleware, in virtual time, its hook and middleware of one scheduler."""
    given = {"quotas": WIDE, "gates": GATE, "policy": Policy.strict(), **options}
    async with (
        in_memory(*answers, tools=[tool()]) as (claude, agent),
        Scheduler(clock=VirtualClock(), **given) as scheduler,
    ):
        agent.on_before_message(scheduler.on_before_message)
        yield claude, around(Route(agent), scheduler, cost=lambda scope: cost or Cost()), scheduler


@pytest.mark.parametrize(
    ("answer", "statuses", "paused", "closed"),
    [
        ((429, {"retry-after": "30"}), [529, 429, 429], True, False),
        ((402, {}), [429, 429, 429], True, True),
    ],
)
def test_the_gate_hears_of_a_refusal(answer: Any, statuses: list[int], paused: bool, closed: bool) -> None:
    """One call is made, and whoever comes afterwards is refused without."""

    async def main() -> None:
        async with routed(answer) as (claude, app, scheduler):
            assert [await get(app) for _ in range(3)] == statuses
            assert len(claude.arrivals) == 1
            gate = (await scheduler.statistics()).gates[""]
            assert (gate.paused > 0, gate.closed) == (paused, closed)

    run_virtual(main())


def test_the_gate_hears_of_an_overload() -> None:
    async def main() -> None:
        async with routed((529, {})) as (_, app, scheduler):
            assert await get(app) == 529
            slots = (await scheduler.statistics()).gates[""].slots
            assert slots is not None
            assert slots < 20

    run_virtual(main())


def test_no_call_begins_once_the_gate_was_closed() -> None:
    """One request hears of the spending limit while another, granted before, has yet to make its call."""

    async def main() -> None:
        async with routed((402, {})) as (claude, app, _):
            late = asyncio.Event()

            async def slowly(scope: Scope, receive: Receive, send: Send) -> None:
                await late.wait()
                await route(scope, receive, send)

            route, app.app = app.app, slowly
            waiting = asyncio.create_task(get(app))
            await asyncio.sleep(1)
            app.app = route
            assert await get(app) == 429
            late.set()
            assert await waiting == 429
            assert len(claude.arrivals) == 1

    run_virtual(main())


@pytest.mark.parametrize("cost", [None, Cost(1, 100, 100)])
def test_the_request_pays_what_the_calls_used(cost: Cost | None) -> None:
    """Both more and less than it was charged; the later messages of the tool loop pay for themselves."""

    async def main() -> None:
        async with routed(LOOK, LOOK, DONE, cost=cost) as (claude, app, scheduler):
            assert await get(app) == 200
            assert len(claude.arrivals) == 3
            assert await used(scheduler) == (3, 30, 15)
            assert (await scheduler.statistics()).running == 0

    run_virtual(main())


def test_output_beyond_the_estimate_is_charged_while_it_comes() -> None:
    async def main() -> None:
        levels: list[tuple[float, ...]] = []
        async with routed(["x" * 2000, "y" * 2000]) as (_, app, scheduler):
            agent: Agent = app.app.agent  # type: ignore[attr-defined]

            async def streams(scope: Scope, receive: Receive, send: Send) -> None:
                session = await agent.new_session("acme")
                async with agent.stream(session.id, "look") as stream:
                    levels.extend([await used(scheduler) async for _ in stream])
                await Route.answer(send)

            app.app = streams
            assert await get(app) == 200
            assert levels[-1] == (1, 0, 1000)
            assert await used(scheduler) == (1, 10, 5)

    run_virtual(main())


class Veto(Exception):
    pass


def test_a_message_that_was_vetoed_leaves_the_request_the_next_one() -> None:
    """It used nothing, so the request still covers one; and that one is charged to it."""

    async def main() -> None:
        async with routed(["Hello."]) as (claude, app, scheduler):
            route: Any = app.app
            vetoes = [Veto()]

            async def veto(_: Any) -> None:
                if vetoes:
                    raise vetoes.pop()

            route.agent.on_before_message(veto)

            async def again(scope: Scope, receive: Receive, send: Send) -> None:
                with pytest.raises(Veto):
                    await route(scope, receive, send)
                await route(scope, receive, send)

            app.app = again
            assert await get(app) == 200
            assert len(claude.arrivals) == 1
            assert await used(scheduler) == (1, 10, 5)

    run_virtual(main())


@pytest.mark.parametrize("concurrency", [None, 1])
def test_two_middlewares_and_two_hooks_charge_each_once(concurrency: int | None) -> None:
    """One for each limit: either hook finds the grant of its own, inner and outer."""

    async def main() -> None:
        quota = Quota(Rate.per_hour(1, burst=10), concurrency=concurrency)
        async with (
            in_memory(["Hello."]) as (claude, agent),
            Scheduler(quotas=quota, clock=VirtualClock()) as inner,
            Scheduler(quotas=quota, clock=VirtualClock()) as outer,
        ):
            agent.on_before_message(inner.on_before_message)
            agent.on_before_message(outer.on_before_message)
            assert await get(around(around(Route(agent), inner), outer)) == 200
            assert [(await one.statistics("acme")).levels["requests"] for one in (inner, outer)] == [9, 9]
            assert len(claude.arrivals) == 1

    run_virtual(main())


def test_a_middleware_around_itself_asks_for_one_turn() -> None:
    async def main() -> None:
        quota = Quota(Rate.per_hour(1, burst=10), concurrency=1)
        async with in_memory(["Hello."]) as (_, agent), Scheduler(quotas=quota, clock=VirtualClock()) as one:
            agent.on_before_message(one.on_before_message)
            assert await get(around(around(Route(agent), one), one)) == 200
            assert (await one.statistics("acme")).levels["requests"] == 9
            assert (await one.statistics()).running == 0

    run_virtual(main())


def test_a_request_within_a_request_has_a_turn_of_its_own() -> None:
    """An app that asks another one in this process, for the same tenant."""

    async def main() -> None:
        async with routed(["Hello."]) as (claude, app, scheduler):
            route = app.app

            async def asks(scope: Scope, receive: Receive, send: Send) -> None:
                app.app = route
                assert await get(app) == 200
                await route(scope, receive, send)

            app.app = asks
            assert await get(app) == 200
            assert len(claude.arrivals) == 2
            assert await used(scheduler) == (2, 20, 10)

    run_virtual(main())
