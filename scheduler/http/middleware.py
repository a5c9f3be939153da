"""A pure ASGI middleware: every request waits its turn in its tenant's line, or is refused, by the policy."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scheduler import (
    Cost,
    DeadlineExceeded,
    ErrRateLimited,
    Grant,
    QuotaExceeded,
    Scheduler,
    SchedulerError,
)
from scheduler.core.entry import RUNNING
from scheduler.http.answers import ANONYMOUS, ANSWERED, UNKNOWN, Answer, answer, at_leisure, build, levels_for
from scheduler.http.fields import Levels
from scheduler.http.headers import RETRY_AFTER_MAX_S, limit_headers, retry_after_seconds
from scheduler.http.incoming import Buffers, Incoming
from scheduler.runtime.grant import current_turn

PATIENCE_HEADERS = (b"x-stainless-read-timeout", b"x-stainless-timeout")
"""Seconds for which Anthropic's SDKs wait for an answer; the first that is there counts."""

PATIENCE_MAX_S = 86_400.0
"""A client that says it waits longer than a day has no patience that would matter."""

PATIENCE_MIN_S = 0.001
"""One that says it waits for less says nothing that could be meant."""

GONE = 499
"""What logs know as a client that closed its request."""

TenantOf = Callable[[Scope], str | Awaitable[str | None] | None]


class ClientGone(Exception):
    """The client disconnected while its request waited."""


class WaitlineMiddleware:
    """``app.add_middleware(WaitlineMiddleware, scheduler=scheduler, tenant=tenant_of)``.

    `scheduler`: entered by the app's lifespan; until then, and once it is closed, requests get a 503.
    `tenant`: of the scope, its tenant, or None (may be async). `anonymous`: what None means, ``"refuse"``
    (401) or ``"pass"`` (no limit). `cost`: of the scope, what the request will use; one request unless told
    otherwise. `gate`: which of several gates.

    `heed_patience`: a client's `x-stainless-read-timeout` (else `x-stainless-timeout`) bounds its wait, less
    `patience_margin` seconds that are left for the response (at most half of what the client gives).
    `buffer_bytes`: request bodies kept for all waiting requests together. `retry_after_max`, `sdk_retries`,
    `problem_json`: see `scheduler.http.answer`.

    The app runs under the grant: ``request.state.grant`` (a `Grant`, to settle with the real usage), and an
    agent's `scheduler.on_before_message` finds the first message of the request paid.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        scheduler: Scheduler,
        tenant: TenantOf,
        anonymous: str = "refuse",
        cost: Callable[[Scope], Cost] | None = None,
        gate: str | None = None,
        heed_patience: bool = True,
        patience_margin: float = 10.0,
        buffer_bytes: int = 64 * 1024 * 1024,
        retry_after_max: int = RETRY_AFTER_MAX_S,
        sdk_retries: bool = True,
        problem_json: bool = False,
    ) -> None:
        if anonymous not in {"refuse", "pass"}:
            raise ValueError(f"anonymous: must be 'refuse' or 'pass', got {anonymous!r}")
        if not 0 <= patience_margin < math.inf:
            raise ValueError(f"patience_margin: must be finite and at least 0, got {patience_margin!r}")
        if retry_after_max < 1:
            raise ValueError(f"retry_after_max: must be at least 1, got {retry_after_max!r}")
        if buffer_bytes < 0:
            raise ValueError(f"buffer_bytes: must not be negative, got {buffer_bytes!r}")
        self.app = app
        self._scheduler = scheduler
        self._tenant_of = tenant
        self._anonymous = anonymous
        self._cost_of = cost
        self._gate = gate
        self._margin = patience_margin if heed_patience else None
        self._buffers = Buffers(buffer_bytes)
        self._retry_after_max = retry_after_max
        self._answer = functools.partial(
            answer, retry_after_max=retry_after_max, sdk_retries=sdk_retries, problem_json=problem_json
        )
        self._build = functools.partial(build, problem_json=problem_json)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit an HTTP request and run the app; anything else passes through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        tenant = self._tenant_of(scope)
        if inspect.isawaitable(tenant):
            tenant = await tenant
        if self._has_turn(tenant, scope):
            await self.app(scope, receive, send)
        elif tenant is not None:
            await self._admit(tenant, scope, receive, send)
        elif self._anonymous == "pass":
            await self.app(scope, receive, send)
        else:
            await _send(self._build(ANONYMOUS), scope, send)

    def _has_turn(self, tenant: str | None, scope: Scope) -> bool:
        """Whether this very request has its turn already, since the middleware stands around itself.

        For a second one it might wait while it holds the only slot. A request that an app makes to another
        app is a request of its own: its scope says nothing of the turn.
        """
        turn = current_turn.get()
        return (
            turn is not None
            and turn is scope.get("state", {}).get("grant")
            and (turn.scheduler, turn.tenant) == (self._scheduler, tenant)
            and turn.state is RUNNING
            and self._gate in {None, turn.gate}
        )

    async def _admit(self, tenant: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask for a turn. Whoever has it at once starts in this very step, so that nobody can pass."""
        cost = None if self._cost_of is None else self._cost_of(scope)
        timeout = None if self._margin is None else patience(scope, self._margin)
        try:
            grant = self._scheduler.admit(tenant, cost=cost, timeout=timeout, gate=self._gate)
            granted = self._scheduler.offer(grant)
        except SchedulerError as error:
            await self._refuse(error, scope, send)
        except ValueError as error:
            # Arguments are named in their errors: a name that a client made up is no fault of the server's.
            if not str(error).startswith("tenant:"):
                raise
            await _send(self._build(UNKNOWN), scope, send)
        else:
            if granted:
                await self._run(grant, scope, receive, send)
            else:
                await self._wait(grant, scope, receive, send)

    async def _wait(self, grant: Grant, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait in line and run the app; leave the line the moment the client does."""

        def leave() -> None:
            if grant.future is not None and not grant.future.done():
                self._scheduler.withdraw(grant)
                grant.failed(ClientGone())

        incoming = Incoming(receive, self._buffers, leave)

        async def turn() -> None:
            try:
                await self._scheduler.turn(grant)
            except ClientGone:
                await _hang_up(send)
            except DeadlineExceeded:
                await self._refuse(await self._too_late(grant), scope, send)
            except SchedulerError as error:
                await self._refuse(error, scope, send)
            else:
                incoming.proceed()
                if incoming.gone:  # it left between the grant and this moment
                    self._scheduler.withdraw(grant)
                    await _hang_up(send)
                else:
                    await self._run(grant, scope, incoming.receive, send)

        await incoming.attend(turn())

    async def _too_late(self, grant: Grant) -> ErrRateLimited:
        """A client's patience ended in line: it gets the refusal that it would have got for coming now."""
        try:
            quote = await self._scheduler.quote(grant.tenant, cost=grant.cost, gate=grant.gate)
        except ErrRateLimited as error:  # the store is down
            return error
        return ErrRateLimited(grant.tenant, "deadline", max(quote.expected, 1e-9))

    async def _run(self, grant: Grant, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app under the grant; settle when the response is complete, or the app has ended without."""
        scope.setdefault("state", {})["grant"] = grant
        started = False

        async def send_and_settle(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": await self._with_limits(message, grant)}
            await send(message)
            if _is_last(message):
                grant.settle(grant.usage)

        grant.outer = current_turn.get()
        token = current_turn.set(grant)
        try:
            await self.app(scope, receive, send_and_settle)
        except ANSWERED as error:
            if started:
                raise
            await self._refuse(error, scope, send)
        finally:
            current_turn.reset(token)
            grant.outer = None
            grant.settle(grant.usage)

    async def _with_limits(self, message: Message, grant: Grant) -> list[tuple[bytes, bytes]]:
        """The response's headers with the tenant's limits in place of any that are there.

        A response that says itself when to come back is left as it is: two answers would contradict.
        """
        headers = [(name.lower(), value) for name, value in message.get("headers", ())]
        if any(name == b"retry-after" for name, _ in headers):
            return headers
        nothing: Levels = {}
        levels = await at_leisure(self._scheduler.current_levels(grant.tenant), nothing)
        wait_s = None
        if any(held < 1 for _, _, held in levels.values()):
            asked = self._scheduler.quote(grant.tenant, cost=grant.cost, gate=grant.gate)
            quote = await at_leisure(asked, None)
            if quote is not None:
                wait_s = retry_after_seconds(quote.expected, self._retry_after_max)
        limits = Answer(200, limit_headers(levels, wait_s), b"").raw_headers()
        ours = {name for name, _ in limits}
        return [header for header in headers if header[0] not in ours] + limits

    async def _refuse(self, error: SchedulerError, scope: Scope, send: Send) -> None:
        levels = None if isinstance(error, QuotaExceeded) else await levels_for(self._scheduler, error)
        await _send(self._answer(error, levels), scope, send)


def patience(scope: Scope, margin_s: float) -> float | None:
    """Seconds for which the client may wait in line, by what it says of itself; None if it says nothing.

    Less than its own time-out, since an SDK repeats a request that timed out and would then queue twice.
    """
    said = dict(scope.get("headers", ()))
    for name in PATIENCE_HEADERS:
        if name in said:
            try:
                seconds = float(said[name])
            except ValueError:  # "None": it waits for ever
                return None
            return (
                max(seconds - margin_s, seconds / 2) if PATIENCE_MIN_S <= seconds <= PATIENCE_MAX_S else None
            )
    return None


def _is_last(message: Message) -> bool:
    """Whether the response is complete with this message."""
    kind = message["type"]
    return kind == "http.response.pathsend" or (
        kind == "http.response.body" and not message.get("more_body", False)
    )


async def _hang_up(send: Send) -> None:
    """Answer a client that has left: servers drop it, but middlewares outside may want some response."""
    headers = [(b"content-length", b"0")]
    with suppress(OSError):
        await send({"type": "http.response.start", "status": GONE, "headers": headers})
        await send({"type": "http.response.body"})


async def _send(found: Answer, scope: Scope, send: Send) -> None:
    headers = found.raw_headers(scope.get("http_version", "1.1"))
    await send({"type": "http.response.start", "status": found.status, "headers": headers})
    await send({"type": "http.response.body", "body": found.body})
