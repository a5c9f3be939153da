"""Clients that hang up: in line, in the instant of the grant, and while the app runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from scheduler import Quota, Rate, Scheduler
from scheduler.http import WaitlineMiddleware
from tests.http.serving import Desk, StillClock, connect, connect_many, serve, tenant_of, turns, until


@asynccontextmanager
async def running(app: Any, quota: Quota) -> AsyncIterator[tuple[int, Scheduler, StillClock]]:
    clock = StillClock()
    async with Scheduler(quotas=quota, clock=clock) as scheduler:
        stack = WaitlineMiddleware(app, scheduler=scheduler, tenant=tenant_of)
        async with serve(stack) as port:
            yield port, scheduler, clock
            await until(lambda: scheduler.engine.waiting == stack._buffers.held == 0)
        assert (await scheduler.statistics()).running == 0


async def test_who_hangs_up_in_line_leaves_it_at_once_and_the_next_moves_up() -> None:
    desk = Desk()
    async with running(desk, Quota(Rate(1))) as (port, scheduler, clock), connect_many(port, 3) as clients:
        first, second, third = clients
        assert (await first.ask(path="/first")).status == 200
        second.send(path="/second", body=b"x" * 200_000)
        await until(lambda: scheduler.engine.waiting == 1)
        third.send(path="/third")
        await until(lambda: scheduler.engine.waiting == 2)
        second.leave()
        await until(lambda: scheduler.engine.waiting == 1)
        assert (await scheduler.statistics()).cancelled == 1
        clock.move(1)  # the slot of the one who left
        assert (await third.reply()).status == 200
        assert desk.came == ["/first", "/third"]
        clock.move(1)
        assert scheduler.levels("acme")["requests"][2] == 1, "the permit was not used"


async def test_middlewares_outside_see_a_response_to_who_hung_up() -> None:
    """One that cannot do without takes its absence for a fault of the app."""
    statuses: list[int] = []

    class Outside(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            response = await call_next(request)
            statuses.append(response.status_code)
            return response

    clock, desk = StillClock(), Desk()
    async with Scheduler(quotas=Quota(Rate(1)), clock=clock) as scheduler:
        stack = Outside(WaitlineMiddleware(desk, scheduler=scheduler, tenant=tenant_of))
        async with serve(stack) as port, connect_many(port, 2) as clients:
            assert (await clients[0].ask()).status == 200
            clients[1].send()
            await until(lambda: scheduler.engine.waiting == 1)
            clients[1].leave()
            await until(lambda: statuses == [200, 499])
    assert desk.came == ["/"]


async def test_all_hang_up_and_nothing_is_left() -> None:
    desk = Desk()
    async with running(desk, Quota(Rate(1))) as (port, scheduler, _), connect_many(port, 30) as clients:
        for number, client in enumerate(clients):
            client.send(body=b"x" * 10, path=f"/{number}")
        await until(lambda: scheduler.engine.waiting == 29)
        for client in clients:
            client.leave()
        await until(lambda: scheduler.engine.waiting == 0)
        assert (await scheduler.statistics("acme")).waiting == 0
    assert len(desk.came) == 1


async def test_half_a_body_then_gone() -> None:
    async with running(Desk(), Quota(Rate(1))) as (port, scheduler, _), connect(port) as client:
        assert (await client.ask()).status == 200
        client.send(body=b"part", content_length="1000")
        await until(lambda: scheduler.engine.waiting == 1)
        client.leave()
        await until(lambda: scheduler.engine.waiting == 0)


async def test_a_pipelined_request_does_not_hide_that_the_client_is_gone() -> None:
    desk = Desk()
    async with running(desk, Quota(Rate(1))) as (port, scheduler, clock), connect(port) as client:
        assert (await client.ask()).status == 200
        client.send(path="/second")
        client.send(path="/third")
        await until(lambda: scheduler.engine.waiting == 1)
        await turns()
        client.leave()
        await until(lambda: scheduler.engine.waiting == 0)
        clock.move(5)
        await turns()
    assert desk.came == ["/"]


async def test_pipelined_requests_are_answered_in_order() -> None:
    desk = Desk()
    async with running(desk, Quota(Rate(1))) as (port, scheduler, clock), connect(port) as client:
        for path in ("/one", "/two", "/three"):
            client.send(path=path, body=path.encode())
        assert (await client.reply()).status == 200
        for _ in range(2):
            await until(lambda: scheduler.engine.waiting == 1)
            clock.move(1)
            assert (await client.reply()).status == 200
    assert desk.came == ["/one", "/two", "/three"]
    assert desk.bodies == [b"/one", b"/two", b"/three"]


@pytest.mark.parametrize("waits", [False, True])
async def test_who_hangs_up_while_the_app_runs_is_the_apps_business(waits: bool) -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            seen.append(message)
        assert (await receive())["type"] == "http.disconnect"
        seen.append(message)

    quota = Quota(Rate(1, burst=1 if waits else 2))
    async with running(app, quota) as (port, scheduler, clock), connect_many(port, 2) as clients:
        if waits:
            async with scheduler.admit("acme"):
                pass
        clients[0].send(body=b"prompt")
        if waits:
            await until(lambda: scheduler.engine.waiting == 1)
            clock.move(1)
        await until(lambda: bool(seen) and not seen[-1]["more_body"])
        clients[0].leave()
        await until(lambda: scheduler.engine.root.running == 0)
        assert scheduler.levels("acme")["requests"][2] == (0 if waits else 1), "the app ran: it is charged"
    assert b"".join(message.get("body", b"") for message in seen) == b"prompt"
    assert seen[-1] == {"type": "http.disconnect"}


class Wire:
    """A server's side of one request, step by step."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return await self.messages.get()

    async def send(self, message: Message) -> None:
        self.sent.append(message)


@asynccontextmanager
async def waiting_request(
    app: Any, **options: Any
) -> AsyncIterator[tuple[Scheduler, StillClock, Wire, asyncio.Task[None]]]:
    """One request that waits for the next permit of a tenant."""
    clock, wire = StillClock(), Wire()
    async with Scheduler(quotas=Quota(Rate(1)), clock=clock) as scheduler:
        async with scheduler.admit("acme"):
            pass
        stack = WaitlineMiddleware(app, scheduler=scheduler, tenant=lambda scope: "acme", **options)
        task = asyncio.create_task(stack({"type": "http", "headers": []}, wire.receive, wire.send))
        await turns()
        assert scheduler.engine.waiting == 1
        yield scheduler, clock, wire, task
        assert (scheduler.engine.waiting, scheduler.engine.root.running, scheduler.resuming) == (0, 0, 0)
        assert stack._buffers.held == 0


async def test_gone_in_the_instant_of_the_grant_gives_the_permit_back() -> None:
    desk = Desk()
    async with waiting_request(desk) as (scheduler, clock, wire, task):
        wire.messages.put_nowait({"type": "http.disconnect"})
        clock.move(1)  # granted, and the listener has yet to hear of the disconnect
        assert scheduler.engine.root.running == 1
        await task
        assert scheduler.levels("acme")["requests"][2] == 1
    assert desk.came == []
    assert [message.get("status") for message in wire.sent] == [499, None], "for middlewares outside"


async def test_gone_just_before_the_grant() -> None:
    desk = Desk()
    async with waiting_request(desk) as (scheduler, clock, wire, task):
        wire.messages.put_nowait({"type": "http.disconnect"})
        await until(lambda: scheduler.engine.waiting == 0)
        clock.move(1)
        await task
        assert scheduler.levels("acme")["requests"][2] == 1
        assert (await scheduler.statistics()).granted == 1


async def test_a_cancelled_server_task_leaves_the_line() -> None:
    async with waiting_request(Desk()) as (scheduler, clock, _, task):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        clock.move(1)
        assert scheduler.levels("acme")["requests"][2] == 1


async def test_no_message_is_lost_whatever_the_app_does_with_receive() -> None:
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> Message:
            return await receive()

        listener = asyncio.create_task(listen())  # as a streaming response listens for a disconnect
        await turns()
        if not listener.done():
            listener.cancel()
            await asyncio.wait([listener])
        else:
            got.append(listener.result())
        while len(got) < 3:
            got.append(await receive())

    parts: list[Message] = [
        {"type": "http.request", "body": b"one", "more_body": True},
        {"type": "http.request", "body": b"two", "more_body": False},
        {"type": "http.disconnect"},
    ]
    for early in range(3):
        got.clear()
        async with waiting_request(app) as (_, clock, wire, task):
            for part in parts[:early]:
                wire.messages.put_nowait(part)
            await turns()
            clock.move(1)
            await turns(10)
            for part in parts[early:]:
                wire.messages.put_nowait(part)
            await task
        assert got == parts


async def test_an_app_is_told_of_the_disconnect_however_often_it_asks() -> None:
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while len(told) < 3:
            told.append((await receive())["type"])

    async with waiting_request(app) as (_, clock, wire, task):
        clock.move(1)
        await turns()
        wire.messages.put_nowait({"type": "http.disconnect"})
        await task
    assert told == ["http.disconnect"] * 3


def chunks(count: int, size: int) -> list[Message]:
    return [{"type": "http.request", "body": b"x" * size, "more_body": True} for _ in range(count)]


@pytest.mark.parametrize(
    ("size", "buffer_bytes", "read"),
    [(65_536, 0, 1), (30_000, 0, 3), (30_000, 100_000, 4), (0, 0, 128), (30_000, 10_000_000, 200)],
)
async def test_what_is_read_of_a_waiting_request_has_a_bound(size: int, buffer_bytes: int, read: int) -> None:
    sizes: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while len(sizes) < 200:
            sizes.append(len((await receive())["body"]))

    async with waiting_request(app, buffer_bytes=buffer_bytes) as (_, clock, wire, task):
        for chunk in chunks(200, size):
            wire.messages.put_nowait(chunk)
        await turns(1000)
        assert 200 - wire.messages.qsize() == read
        clock.move(1)
        await task
    assert sizes == [size] * 200


async def test_once_its_turn_has_come_nothing_is_read_ahead_of_the_app() -> None:
    asked = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asked.wait()

    async with waiting_request(app) as (_, clock, wire, task):
        clock.move(1)
        await turns()
        for chunk in chunks(10, 10):
            wire.messages.put_nowait(chunk)
        await turns()
        assert wire.messages.qsize() == 9, "only the call that was out when the wait ended"
        asked.set()
        await task
