"""The agent: sessions, runs and hooks over a Messages-API client."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

from agent.arguments import at_least_one, by_name, own_copy, seconds, text_of
from agent.errors import WrongTenant
from agent.hooks import AfterHook, BeforeHook, Hooks, ToolHook, checked
from agent.messages import Message, Prompt, Reply
from agent.run import Carrier, Run, Setup
from agent.sessions import MemorySessions, Session, Sessions, turn_of
from agent.tools import Tool
from scheduler import Job, Retry, UpstreamError
from scheduler.upstreams.claude import (
    BYTES_MAX,
    Client,
    check_prompt,
    count_tokens,
    outcome,
    unretried,
)

B = TypeVar("B", bound=BeforeHook)
A = TypeVar("A", bound=AfterHook)
T = TypeVar("T", bound=ToolHook)


class TextStream:
    """The text of a run as it comes: iterate over it, and read `reply` at the end.

    Leaving it early ends the upstream's work and settles what was used; ``async with`` does that at once,
    a bare ``async for`` when the stream is dropped.
    """

    def __init__(self, run: Run, deltas: AsyncGenerator[str, None]) -> None:
        self._run = run
        self._deltas = deltas

    @property
    def reply(self) -> Reply:
        """The complete reply; RuntimeError before the stream has ended."""
        return self._run.reply

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        return await anext(self._deltas)

    async def aclose(self) -> None:
        """Stop. What was said so far is not kept in the session."""
        await self._deltas.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Agent:
    """Holds conversations with a model, for many tenants.

    `client`: an `anthropic.AsyncAnthropic`, whose own retries are turned off here. `model`, `system`,
    `max_tokens`: of every request. `tools`: what the model may call, at most `max_turns` messages to a
    run. `sessions`: where conversations are kept, in memory unless told otherwise. `call_timeout`:
    seconds that a call may take until its answer is complete; the client's own timeouts only bound
    silence. `retry_timeouts`: let `handle` repeat a request that timed out, although it may have run and
    been billed. `headers`: a function from a `Message` to further headers of its request. `draw`: random
    numbers from 0 up to 1, for backoff.
    """

    def __init__(
        self,
        client: Client,
        *,
        model: str,
        system: str | list[dict[str, Any]] | None = None,
        max_tokens: int = 1024,
        tools: Iterable[Tool] = (),
        sessions: Sessions | None = None,
        max_turns: int = 10,
        call_timeout: float = 600.0,
        retry_timeouts: bool = False,
        headers: Callable[[Message], Mapping[str, str]] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        named = by_name(tools)
        parameters: dict[str, Any] = {
            "model": text_of("model", model),
            "max_tokens": at_least_one("max_tokens", max_tokens),
        }
        if system is not None:
            parameters["system"] = system
        if named:
            parameters["tools"] = [tool.definition() for tool in named.values()]
        self.sessions: Sessions = MemorySessions() if sessions is None else sessions
        self._hooks = Hooks()
        self.client = unretried(client)
        """What it talks through: the given client, without retries of its own."""
        self._retry_timeouts = retry_timeouts
        self._draw = draw
        self._setup = Setup(
            client=self.client,
            model=model,
            parameters=parameters,
            tools=named,
            hooks=self._hooks,
            max_turns=at_least_one("max_turns", max_turns),
            headers=headers,
            call_timeout=seconds("call_timeout", call_timeout),
        )

    # --- hooks ----------------------------------------------------------------------------------------

    def on_before_message(self, hook: B) -> B:
        """Await ``hook(message)`` before each request; usable as a decorator.

        Hooks run in the order in which they were registered. The first to raise stops the rest, and its
        exception reaches the caller unchanged. A `Grant` that a hook returns is settled exactly once: with
        the real usage, or with nothing when the request was not sent after all.
        """
        self._hooks.before.append(checked(hook))
        return hook

    def on_after_message(self, hook: A) -> A:
        """Await ``hook(message, reply)`` after each answer; raising fails the run."""
        self._hooks.after.append(checked(hook))
        return hook

    def on_tool_call(self, hook: T) -> T:
        """Await ``hook(tool_call)`` before each call of a tool; raising fails the run.

        A `Grant` that it returns is settled when the tool has ended.
        """
        self._hooks.tool.append(checked(hook))
        return hook

    # --- sessions -------------------------------------------------------------------------------------

    async def new_session(
        self, tenant: str, user: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Session:
        """Begin a conversation of a tenant. See `Session` for `user` and `metadata`."""
        return await self.sessions.create(text_of("tenant", tenant), user, metadata)

    async def end_session(self, session_id: str, tenant: str | None = None) -> None:
        """Forget a conversation. With `tenant` it must be that tenant's.

        A run that is under way ends as it would, and leaves nothing. Raises `UnknownSession`, `WrongTenant`.
        """
        await self._owned(session_id, tenant)
        await self.sessions.end(session_id)

    async def _owned(self, session_id: str, tenant: str | None) -> Session:
        session = await self.sessions.get(text_of("session_id", session_id))
        if tenant is not None and session.tenant != text_of("tenant", tenant):
            raise WrongTenant(session_id, tenant)
        return session

    # --- runs -----------------------------------------------------------------------------------------

    async def run(self, session_id: str, prompt: Prompt, tenant: str | None = None) -> Reply:
        """Continue a conversation and return the reply. With `tenant` it must be that tenant's.

        Runs of one session follow one another; one that waits for another holds nothing. A run that fails
        leaves the conversation as it was. Raises `UnknownSession`, `WrongTenant`, `UpstreamError`,
        `TooManyTurns`, RuntimeError in a tool of a run of the same session, and whatever a hook raises.
        """
        async with self.stream(session_id, prompt, tenant) as stream:
            async for _ in stream:
                pass
        return stream.reply

    def stream(self, session_id: str, prompt: Prompt, tenant: str | None = None) -> TextStream:
        """Like `run`, but give the text as it comes, that of all messages of the run.

        A prompt that cannot be sent raises TypeError or ValueError; else nothing happens before the first
        step. ``async with agent.stream(…) as stream: async for text in stream: …``
        """
        check_prompt(prompt, BYTES_MAX)
        run = Run(self._setup, own_copy(prompt), "")
        return TextStream(run, self._continue(run, session_id, tenant))

    async def _continue(self, run: Run, session_id: str, tenant: str | None) -> AsyncGenerator[str, None]:
        session = await self._owned(session_id, tenant)
        async with aclosing(self._converse(run, session)) as deltas:
            async for text in deltas:
                yield text

    async def _converse(self, run: Run, session: Session) -> AsyncGenerator[str, None]:
        run.session, run.tenant = session, session.tenant
        async with (
            turn_of(self.sessions, session.id) as turn,
            aclosing(run.deltas(turn.history)) as deltas,
        ):
            async for text in deltas:
                yield text
            # The upstream's advice after a refusal is to leave the refused prompt out from then on.
            if run.reply.message.stop_reason != "refusal":
                await turn.append(run.kept)

    async def count(self, prompt: Prompt) -> int:
        """How many input tokens a prompt has as a message of its own, as the API counts them.

        For ``Scheduler(…, estimates=Estimates(agent.count))``. It is a call, with a limit of its own, and
        free of charge. Raises `UpstreamError`.
        """
        return await count_tokens(self._setup.client, self._setup.parameters, own_copy(prompt))

    async def handle(self, job: Job, by: Carrier | None = None) -> Reply:
        """Run a job: the handler for ``Scheduler(agent.handle, …)``.

        The job's session is the tenant's session of that name, or of that id, and begun if there is none;
        without one the conversation is forgotten. The job pays for its first message, and for later ones
        unless `Scheduler.on_before_message` is a hook here and takes permits for them. A failure of the
        upstream that is worth a repeat becomes `Retry`, unless a tool has acted. `by`: how its messages go
        upstream, if not by a call each: see `BatchDesk`.
        """
        run = Run(self._setup, own_copy(job.prompt), job.tenant, job=job, by=by)
        try:
            async with aclosing(await self._deltas_of(run, job)) as deltas:
                async for _ in deltas:
                    pass
        except UpstreamError as error:
            retry = None if run.acted or error is not run.failure else self._retry(error, job, by)
            if retry is None:
                raise
            raise retry from error
        finally:
            if run.unpaid is not None:
                job.settle(run.unpaid)
        return replace(run.reply, receipt=replace(job.receipt, usage=run.reply.usage))

    async def _deltas_of(self, run: Run, job: Job) -> AsyncGenerator[str, None]:
        if job.session is None:
            return run.deltas(())
        return self._converse(run, await self.sessions.named(job.tenant, job.session))

    def _retry(self, error: UpstreamError, job: Job, by: Carrier | None) -> Retry | None:
        told = outcome(error, job.tries, self._draw, retry_timeouts=self._retry_timeouts)
        # What did not go by a call says nothing about the gate, and left the line without paying.
        return told if told is None or by is None else Retry(told.after)
