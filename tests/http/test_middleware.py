"""The middleware over a real socket: who waits, who is refused, what is settled, what the headers say."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import http_sf
import pytest
from starlette.types import Message, Receive, Scope, Send

from scheduler import Cost, ErrRateLimited, Grant, Policy, Quota, Rate, Scheduler, Usage
from scheduler.http import WaitlineMiddleware
from scheduler.http.middleware import patience
from scheduler.runtime.grant import Cover
from tests.http.serving import Client, Desk, StillClock, connect, connect_many, serve, tenant_of, until

TWO_PER_SECOND = Quota(Rate(2, burst=5))
ONE_AT_A_TIME = Quota(concurrency=1)


@asynccontextmanager
async def running(
    app: Any, quotas: Any = TWO_PER_SECOND, policy: Policy | None = None, **options: Any
) -> AsyncIterator[tuple[Client, Scheduler, StillClock]]:
    """A server with the middleware, one connection to it, the scheduler and its clock."""
    clock = StillClock()
    async with Scheduler(quotas=quotas, policy=policy or Policy(), clock=clock) as scheduler:
        stack = WaitlineMiddleware(app, scheduler=scheduler, **{"tenant": tenant_of, **options})
        async with serve(stack) as port, connect(port) as client:
            yield client, scheduler, clock
            await until(lambda: scheduler.engine.waiting == stack._buffers.held == 0)


async def test_a_burst_passes_on_one_connection_and_the_rest_is_refused() -> None:
    async with running(Desk(), policy=Policy.strict()) as (client, scheduler, _):
        replies = [await client.ask(body=b"x") for _ in range(8)]
        assert (await scheduler.statistics()).running == 0
    assert [reply.status for reply in replies] == [200] * 5 + [429] * 3
    assert [reply.headers["ratelimit"] for reply in replies[:5]] == [
        '"tenant";r=4;t=2',
        '"tenant";r=3;t=2',
        '"tenant";r=2;t=1',
        '"tenant";r=1;t=1',
        '"tenant";r=0;t=1',
    ]
    assert [reply.headers["x-ratelimit-remaining"] for reply in replies] == list("43210000")
    for reply in replies:
        assert reply.headers["ratelimit-policy"] == '"tenant";q=5;w=3'
        assert reply.headers["x-ratelimit-limit"] == "5"
        assert http_sf.parse(reply.headers["ratelimit"].encode(), tltype="list")
    refused = replies[5:]
    assert [reply.json["error"]["details"]["retry_after_seconds"] for reply in refused] == [0.5, 1.0, 1.5]
    assert [reply.headers["retry-after"] for reply in refused] == ["1", "1", "2"]
    assert [reply.headers["retry-after-ms"] for reply in refused] == ["500", "1000", "1500"]
    assert [reply.headers["ratelimit"] for reply in refused] == [f'"tenant";r=0;t={t}' for t in (1, 1, 2)]
    assert all(reply.headers["cache-control"] == "no-store" for reply in refused)
    assert all("cache-control" not in reply.headers for reply in replies[:5])


async def test_a_queued_request_starts_in_its_slot_with_its_whole_body() -> None:
    desk = Desk()
    body = bytes(range(256)) * 1024
    async with running(desk, Quota(Rate(2, burst=1))) as (client, scheduler, clock):
        assert (await client.ask()).status == 200
        client.send(body=body)
        await until(lambda: scheduler.engine.waiting == 1)
        clock.move(0.499)
        assert desk.bodies == [b""]
        clock.move(0.001)
        reply = await client.reply()
        assert (reply.status, reply.body) == (200, b"ok")
        assert reply.headers["ratelimit"] == '"tenant";r=0;t=1'
    assert desk.bodies == [b"", body]


async def test_a_full_buffer_holds_the_body_back_until_its_turn() -> None:
    desk = Desk()
    body = bytes(range(256)) * 4096
    async with running(desk, Quota(Rate(2, burst=1)), buffer_bytes=0) as (client, scheduler, clock):
        assert (await client.ask()).status == 200
        client.send(body=body)
        await until(lambda: scheduler.engine.waiting == 1)
        clock.move(0.5)
        assert (await client.reply()).status == 200
    assert desk.bodies == [b"", body]


async def test_two_tenants_keep_their_own_order() -> None:
    desk = Desk()
    arrived: list[str] = []

    def note(scope: Scope) -> str | None:
        arrived.append(scope["path"])
        return tenant_of(scope)

    async with running(desk, Quota(Rate(100, burst=1)), tenant=note) as (client, scheduler, clock):
        port = client.writer.get_extra_info("peername")[1]
        async with connect_many(port, 200) as clients:
            for number, one in enumerate(clients):
                tenant = ("acme", "zoo")[number % 2]
                one.send(tenant, path=f"/{tenant}/{number}")
            await until(lambda: len(arrived) == 200)
            for _ in range(100):
                clock.move(0.01)
                await asyncio.sleep(0)
            assert {reply.status for reply in [await one.reply() for one in clients]} == {200}
        assert (await scheduler.statistics()).granted == 200
    for tenant in ("/acme/", "/zoo/"):
        assert [path for path in desk.came if tenant in path] == [path for path in arrived if tenant in path]


async def test_a_newcomer_does_not_run_before_those_granted_ahead_of_it() -> None:
    clock, ran = StillClock(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ran.append(scope["path"])

    async def nothing() -> Message:
        await asyncio.Event().wait()
        return {}

    async def sink(message: Message) -> None: ...

    async with Scheduler(quotas=Quota(Rate(1, burst=2)), clock=clock) as scheduler:
        stack = WaitlineMiddleware(app, scheduler=scheduler, tenant=lambda scope: "acme")

        def ask(name: str) -> asyncio.Task[None]:
            return asyncio.create_task(stack({"type": "http", "path": name, "headers": []}, nothing, sink))

        await asyncio.gather(ask("a"), ask("b"))
        waiting = [ask("c"), ask("d")]
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(lambda: waiting.append(ask("e")))
        clock.move(3)
        await asyncio.sleep(0)
        await asyncio.gather(*waiting)
    assert ran == ["a", "b", "c", "d", "e"]


async def test_the_grant_ends_with_the_body_not_with_the_task() -> None:
    after = asyncio.Event()
    held: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            held.append(scheduler.engine.root.running)
        await send({"type": "http.response.body", "body": b""})
        held.append(scheduler.engine.root.running)
        await after.wait()

    async with running(app, ONE_AT_A_TIME) as (client, scheduler, _):
        reply = await client.ask()
        assert reply.body == b"onetwo"
        assert reply.headers["ratelimit-policy"] == '"slots";q=1;qu="concurrent-requests"'
        assert reply.headers["ratelimit"] == '"slots";r=0;t=1'
        assert "x-ratelimit-limit" not in reply.headers
        after.set()
    assert held == [1, 1, 0]


async def test_an_app_that_never_reads_the_body_and_one_that_waited() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async with running(app, Quota(Rate(2, burst=1))) as (client, scheduler, clock):
        assert (await client.ask(body=b"x" * 100_000)).status == 204
        client.send(body=b"y" * 100_000)
        await until(lambda: scheduler.engine.waiting == 1)
        clock.move(0.5)
        assert (await client.reply()).status == 204


@pytest.mark.parametrize("waits", [False, True])
async def test_an_app_that_raises_is_settled_once_and_reaches_the_server(waits: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/bad":
            raise RuntimeError("the app's own")
        await Desk()(scope, receive, send)

    async with running(app, Quota(Rate(2, burst=1))) as (client, scheduler, clock):
        if waits:
            await client.ask()
        client.send(path="/bad")
        if waits:
            await until(lambda: scheduler.engine.waiting == 1)
            clock.move(0.5)
        reply = await client.reply()
        assert (reply.status, reply.body) == (500, b"Internal Server Error")
        assert (await scheduler.statistics()).running == 0
        assert scheduler.levels("acme")["requests"][2] == 0


async def test_the_exception_of_an_app_that_waited_is_not_wrapped() -> None:
    error = KeyError("mine")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    async def send(message: Message) -> None: ...

    clock = StillClock()
    async with Scheduler(quotas=Quota(Rate(1)), clock=clock) as scheduler:
        stack = WaitlineMiddleware(app, scheduler=scheduler, tenant=lambda scope: "acme")
        for waits in (False, True):
            task = asyncio.create_task(stack({"type": "http", "headers": []}, receive, send))
            await asyncio.sleep(0)
            clock.move(1.0 if waits else 0.0)
            with pytest.raises(KeyError) as caught:
                await task
            assert caught.value is error


async def test_errors_of_the_scheduler_inside_the_app_are_answered() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ErrRateLimited("acme", "strict", 2.5)

    async with running(app) as (client, _, _):
        reply = await client.ask()
    assert (reply.status, reply.headers["retry-after"], reply.headers["ratelimit"]) == (
        429,
        "3",
        '"tenant";r=0;t=3',
    )


async def test_a_response_that_says_when_to_come_back_is_left_alone() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"Retry-After", b"7"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body"})

    async with running(app) as (client, _, _):
        reply = await client.ask()
    assert reply.headers["retry-after"] == "7"
    assert "ratelimit" not in reply.headers


async def test_limits_that_the_app_passes_on_are_replaced() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"X-RateLimit-Limit", b"99999"), (b"ratelimit", b'"all";r=1'), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    async with running(app) as (client, _, _):
        reply = await client.ask()
    assert (reply.headers["x-ratelimit-limit"], reply.headers["ratelimit"]) == ("5", '"tenant";r=4;t=2')


async def test_the_app_settles_with_the_real_usage() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["grant"].settle(Usage(1, 70, 0))
        await Desk()(scope, receive, send)

    quota = Quota(Rate(2, burst=5), input_tokens=Rate(10, burst=100))
    async with running(app, quota, cost=lambda scope: Cost(1, 30)) as (client, scheduler, _):
        assert (await client.ask()).status == 200
        assert scheduler.levels("acme")["input_tokens"][2] == 30


async def test_an_agents_first_message_is_paid_by_the_request() -> None:
    class Message:
        tenant = "acme"

    grants = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        grants.append(await scheduler.on_before_message(Message()))
        second = await scheduler.on_before_message(Message())
        assert second is not None
        second.settle()
        await Desk()(scope, receive, send)

    async with running(app) as (client, scheduler, _):
        assert (await client.ask()).status == 200
        assert [type(grant) for grant in grants] == [Cover]
        assert scheduler.levels("acme")["requests"][2] == 3
        assert type(await scheduler.on_before_message(Message())) is Grant


async def test_what_its_limits_cannot_be_found_out_of_is_sent_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Served or refused: they only adorn a response that is there."""

    async def broken(tenant: str) -> Any:
        raise RuntimeError("no levels")

    async with running(Desk(), Quota(Rate(1)), Policy.strict()) as (client, scheduler, _):
        monkeypatch.setattr(scheduler, "current_levels", broken)
        replies = [await client.ask(), await client.ask()]
    assert [reply.status for reply in replies] == [200, 429]
    assert all("ratelimit" not in reply.headers for reply in replies)


async def test_no_quote_is_needed_to_send_what_is_left() -> None:
    """The quota was lowered meanwhile, below what the request costs: no other one will ever fit."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await scheduler.set_quota("acme", Quota(Rate(1, burst=2)))
        await Desk()(scope, receive, send)

    async with running(app, Quota(Rate(1, burst=5)), cost=lambda scope: Cost(5)) as (client, scheduler, _):
        reply = await client.ask()
    assert (reply.status, reply.headers["x-ratelimit-remaining"]) == (200, "0")


async def test_no_tenant_is_refused_or_passed() -> None:
    async with running(Desk(), tenant=lambda scope: None) as (client, _, _):
        reply = await client.ask()
        assert (reply.status, reply.json["error"]["type"]) == (401, "authentication_error")
        assert reply.headers["www-authenticate"] == "Bearer"
    async with running(Desk(), tenant=lambda scope: None, anonymous="pass") as (client, scheduler, _):
        reply = await client.ask()
        assert reply.status == 200
        assert "ratelimit" not in reply.headers
        assert (await scheduler.statistics()).granted == 0


@pytest.mark.parametrize("tenant", ["nobody", "x" * 513])
async def test_an_unknown_tenant_is_refused(tenant: str) -> None:
    async with running(Desk(), {"acme": Quota()}) as (client, _, _):
        reply = await client.ask(tenant)
        assert (reply.status, reply.json["error"]["details"]["error_code"]) == (403, "unknown_tenant")
        assert tenant.encode() not in reply.body
        assert (await client.ask()).status == 200


async def test_a_tenant_may_be_looked_up() -> None:
    async def look_up(scope: Scope) -> str | None:
        await asyncio.sleep(0)
        return tenant_of(scope)

    async with running(Desk(), tenant=look_up) as (client, scheduler, _):
        assert (await client.ask("zoo")).status == 200
        assert scheduler.levels("zoo")["requests"][2] == 4


async def test_what_can_never_fit_and_what_is_closed() -> None:
    async with running(Desk(), cost=lambda scope: Cost(6)) as (client, scheduler, _):
        reply = await client.ask()
        assert (reply.status, "retry-after" in reply.headers) == (413, False)
        await scheduler.aclose()
        reply = await client.ask()
        assert (reply.status, reply.headers["connection"]) == (503, "close")
        assert await client.reader.read() == b""


async def test_closing_answers_those_who_wait() -> None:
    async with running(Desk(), Quota(Rate(1))) as (client, scheduler, _):
        await client.ask()
        client.send()
        await until(lambda: scheduler.engine.waiting == 1)
        await scheduler.aclose(drain=False)
        assert (await client.reply()).status == 503


async def test_a_full_line_and_a_long_one() -> None:
    policy = Policy(max_wait=2.0, max_queue=3)
    async with running(Desk(), Quota(Rate(1)), policy) as (client, _, _):
        await client.ask()
        port = client.writer.get_extra_info("peername")[1]
        async with connect_many(port, 2) as clients:
            for one in clients:
                one.send()
            reply = await client.ask()
    details = reply.json["error"]["details"]
    assert (reply.status, details) == (
        429,
        {"error_code": "queue_max_wait", "reason": "max_wait", "retry_after_seconds": 3.0},
    )


async def test_a_clients_patience_bounds_its_wait() -> None:
    async with running(Desk(), Quota(Rate(1, per=20))) as (client, scheduler, clock):
        await client.ask()
        reply = await client.ask(x_stainless_read_timeout="30")
        assert (reply.status, reply.json["error"]["details"]["error_code"]) == (429, "queue_deadline")
        client.send(x_stainless_read_timeout="30.1")
        await until(lambda: scheduler.engine.waiting == 1)
        clock.move(20)
        assert (await client.reply()).status == 200


async def test_patience_that_ends_in_line_is_a_refusal_with_a_time() -> None:
    desk = Desk(held=True)
    async with running(desk, ONE_AT_A_TIME) as (client, scheduler, clock):
        port = client.writer.get_extra_info("peername")[1]
        async with connect(port) as second:
            client.send(path="/first")
            await until(lambda: desk.came == ["/first"])
            second.send(path="/second", x_stainless_read_timeout="30")
            await until(lambda: scheduler.engine.waiting == 1)
            clock.move(20)
            reply = await second.reply()
        assert (reply.status, reply.json["error"]["details"]["error_code"]) == (429, "queue_deadline")
        assert int(reply.headers["retry-after"]) >= 1
        desk.go.release()
        assert (await client.reply()).status == 200
    assert desk.came == ["/first"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"x-stainless-read-timeout": "600"}, 590),
        ({"x-stainless-timeout": "600.0"}, 590),
        ({"x-stainless-timeout": "600", "x-stainless-read-timeout": "100"}, 90),
        ({"x-stainless-read-timeout": "4"}, 2),
        ({"x-stainless-timeout": "None"}, None),
        ({"x-stainless-timeout": "NOT_GIVEN"}, None),
        ({"x-stainless-timeout": "nan"}, None),
        ({"x-stainless-timeout": "inf"}, None),
        ({"x-stainless-timeout": "1e300"}, None),
        ({"x-stainless-timeout": "-1"}, None),
        ({"x-stainless-timeout": "0"}, None),
        ({"x-stainless-timeout": "5e-324"}, None),
        ({"x-stainless-timeout": "0.001"}, 0.0005),
    ],
)
def test_patience_is_read_from_what_sdks_send(headers: dict[str, str], seconds: float | None) -> None:
    scope = {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    assert patience(scope, 10.0) == seconds


async def test_other_scopes_pass_through() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    async with Scheduler(quotas=TWO_PER_SECOND) as scheduler:
        stack = WaitlineMiddleware(app, scheduler=scheduler, tenant=lambda scope: "acme")
        for kind in ("lifespan", "websocket"):
            await stack({"type": kind}, receive, send)
    assert seen == ["lifespan", "websocket"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("anonymous", "maybe"), ("patience_margin", -1), ("retry_after_max", 0), ("buffer_bytes", -1)],
)
def test_bad_settings_are_named(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: "):
        WaitlineMiddleware(Desk(), scheduler=Scheduler(), tenant=tenant_of, **{argument: value})
