"""Starlette, FastAPI and the Anthropic SDK on a real socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic, RateLimitError
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from scheduler import ErrRateLimited, Job, Policy, Quota, Rate, Scheduler, SchedulerError
from scheduler.http import WaitlineMiddleware, exception_handler
from tests.http.serving import StillClock, connect, serve, tenant_of, until

QUOTA = Quota(Rate(2, burst=2))
ACME = {"x-tenant-id": "acme"}


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx2.AsyncClient]:
    async with serve(app, lifespan=True) as port, httpx2.AsyncClient(headers=ACME) as client:
        client.base_url = f"http://127.0.0.1:{port}"
        yield client


def starlette_app(scheduler: Scheduler, **options: Any) -> Starlette:
    async def echo(request: StarletteRequest) -> Response:
        return PlainTextResponse(await request.body())

    async def stream(request: StarletteRequest) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for part in (b"one ", b"two"):
                assert scheduler.engine.root.running == 1
                yield part

        return StreamingResponse(parts())

    async def bad(request: StarletteRequest) -> Response:
        raise ErrRateLimited("acme", "strict", 4.5)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with scheduler:
            yield

    routes = [
        Route("/echo", echo, methods=["POST"]),
        Route("/stream", stream),
        Route("/bad", bad),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.add_middleware(WaitlineMiddleware, scheduler=scheduler, tenant=tenant_of, **options)
    return app


async def test_starlette() -> None:
    scheduler = Scheduler(quotas=QUOTA, policy=Policy.strict(), clock=StillClock())
    async with client_of(starlette_app(scheduler)) as client:
        echoed = await client.post("/echo", content=b"hello")
        assert (echoed.status_code, echoed.content) == (200, b"hello")
        assert echoed.headers["RateLimit"] == '"tenant";r=1;t=1'
        streamed = await client.get("/stream")
        assert streamed.content == b"one two"
        refused = await client.get("/stream")
        assert refused.status_code == 429
        assert refused.headers["content-type"] == "application/json"
        assert scheduler.engine.root.running == 0


async def test_an_error_of_the_scheduler_in_a_route_becomes_a_429() -> None:
    scheduler = Scheduler(quotas=QUOTA, clock=StillClock())
    async with client_of(starlette_app(scheduler)) as client:
        reply = await client.get("/bad")
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "5")


async def test_a_streaming_response_of_a_request_that_waited() -> None:
    clock = StillClock()
    scheduler = Scheduler(quotas=Quota(Rate(1)), clock=clock)
    async with serve(starlette_app(scheduler), lifespan=True) as port, connect(port) as client:
        for waits in (False, True):
            client.writer.write(b"GET /stream HTTP/1.1\r\nhost: x\r\nx-tenant-id: acme\r\n\r\n")
            if waits:
                await until(lambda: scheduler.engine.waiting == 1)
                clock.move(1)
            assert (await client.reply()).body == b"one two"
        client.writer.write(b"GET /stream HTTP/1.1\r\nhost: x\r\nx-tenant-id: acme\r\n\r\n")
        await until(lambda: scheduler.engine.waiting == 1)
        client.leave()
        await until(lambda: scheduler.engine.waiting == 0)


async def test_fastapi() -> None:
    scheduler = Scheduler(quotas=QUOTA, policy=Policy.strict(), clock=StillClock())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with scheduler:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(WaitlineMiddleware, scheduler=scheduler, tenant=tenant_of, problem_json=True)

    @app.post("/echo")
    async def echo(prompt: dict[str, str], request: Request) -> dict[str, Any]:
        return {**prompt, "waited": request.state.grant.waited}

    async with client_of(app) as client:
        for _ in range(2):
            reply = await client.post("/echo", json={"prompt": "hi"})
            assert reply.json() == {"prompt": "hi", "waited": 0.0}
        refused = await client.post("/echo", json={"prompt": "hi"})
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json() == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "rate limited (strict): retry after 0.5s",
        "status": 429,
        "error_code": "tenant_rate_limited",
        "reason": "strict",
        "retry_after_seconds": 0.5,
        "violated-policies": ["tenant"],
    }


async def test_routes_that_submit_answer_with_the_exception_handler() -> None:
    async def handler(job: Job) -> str:
        return str(job.prompt)

    scheduler = Scheduler(handler, quotas=QUOTA, policy=Policy.strict(), clock=StillClock())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with scheduler:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_exception_handler(SchedulerError, exception_handler(scheduler))

    @app.get("/say")
    async def say() -> str:
        return str(await scheduler.submit("acme", "hi"))

    @app.get("/own")
    async def own() -> str:
        raise SchedulerError("the application's own")

    async with client_of(app) as client:
        replies = [await client.get("/say") for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert replies[2].headers["RateLimit"] == '"tenant";r=0;t=1'
        assert replies[2].json()["error"]["details"]["retry_after_seconds"] == 0.5
        assert (await client.get("/own")).status_code == 500


def claude(scheduler: Scheduler, **options: Any) -> FastAPI:
    """What stands behind the middleware: an endpoint that looks like Claude's."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with scheduler:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(WaitlineMiddleware, scheduler=scheduler, tenant=tenant_of, **options)

    @app.post("/v1/messages")
    async def messages(request: Request) -> JSONResponse:
        body = await request.json()
        content = [{"type": "text", "text": "hi"}]
        usage = {"input_tokens": 1, "output_tokens": 1}
        return JSONResponse({
            "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": content,
            "stop_reason": "end_turn", "stop_sequence": None, "usage": usage,
        })  # fmt: skip

    return app


async def ask(client: AsyncAnthropic) -> Any:
    return await client.messages.create(
        model="claude-haiku-4-5", max_tokens=10, messages=[{"role": "user", "content": "hi"}]
    )


async def test_the_sdk_comes_back_when_it_was_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slept = StillClock(), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.move(seconds)

    monkeypatch.setattr("anthropic._base_client.anyio.sleep", sleep)
    scheduler = Scheduler(quotas=Quota(Rate(1, per=7)), policy=Policy.strict(), clock=clock)
    async with (
        serve(claude(scheduler), lifespan=True) as port,
        AsyncAnthropic(
            api_key="sk-test", base_url=f"http://127.0.0.1:{port}", default_headers=ACME, max_retries=1
        ) as client,
    ):
        assert (await ask(client)).content[0].text == "hi"
        assert slept == []
        assert (await ask(client)).content[0].text == "hi"
    assert slept == [7.0]


async def test_the_sdk_raises_what_it_raises_for_claude() -> None:
    scheduler = Scheduler(quotas=Quota(Rate(1, per=7)), policy=Policy.strict(), clock=StillClock())
    async with (
        serve(claude(scheduler, sdk_retries=False), lifespan=True) as port,
        AsyncAnthropic(
            api_key="sk-test", base_url=f"http://127.0.0.1:{port}", default_headers=ACME, max_retries=5
        ) as client,
    ):
        await ask(client)
        with pytest.raises(RateLimitError) as caught:
            await ask(client)
    assert caught.value.type == "rate_limit_error"
    assert caught.value.response.headers["retry-after-ms"] == "7000"
