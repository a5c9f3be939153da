"""One run: a prompt on its way to its reply, with the messages and tool calls that it takes."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from agent.errors import TooManyTurns
from agent.hooks import Grants, Hooks
from agent.messages import Message, Prompt, Reply, ToolCall
from agent.sessions import Session
from agent.tools import Tool, failed_result
from scheduler import Grant, Job, Signal, UpstreamError, Usage
from scheduler.upstreams.claude import NOTHING, Call, Client, Content
from scheduler.upstreams.claude import Message as ClaudeMessage

ONE_REQUEST = Usage(1, 0, 0)

THOUGHTS = frozenset({"thinking", "redacted_thinking"})
"""Blocks with which the upstream takes no answer that ends."""


class Sending(Protocol):
    """A message on its way upstream, as `Call` is one.

    It is sent in an ``async with`` block, and iterated for its text, which raises `UpstreamError`. Leaving
    the block early means that its answer is not wanted any more.
    """

    @property
    def usage(self) -> Usage | None:
        """What it used; None if that is not known."""

    @property
    def message(self) -> ClaudeMessage:
        """The complete answer; RuntimeError before there is one."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> AsyncIterator[str]: ...


class Carrier(Protocol):
    """Another way upstream than a call for each message."""

    def sending(self, job: Job | None, request: Mapping[str, Any]) -> Sending:
        """A message of a job that is to be sent."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What all runs of an agent share."""

    client: Client
    model: str
    parameters: Mapping[str, Any]
    tools: Mapping[str, Tool]
    hooks: Hooks
    max_turns: int
    headers: Callable[[Message], Mapping[str, str]] | None
    call_timeout: float


@dataclass(slots=True)
class Run:
    """The state of a run. It lives no longer than the call that started it.

    `by` is how the messages of a deferred job travel, None for a call each.
    `usage` is what all its messages used. `unpaid` is the part that no before-hook of the job's scheduler has
    taken permits for, which the job therefore pays; None if its estimate stands. `acted` says that a tool was
    called. `failure` is what the upstream failed with, `last` the final reply, `kept` what the session should
    remember.
    """

    setup: Setup
    prompt: Prompt
    tenant: str
    session: Session | None = None
    job: Job | None = None
    by: Carrier | None = None
    usage: Usage = NOTHING
    unpaid: Usage | None = NOTHING
    acted: bool = False
    failure: UpstreamError | None = None
    last: Reply | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reply(self) -> Reply:
        """The reply that it ended with; RuntimeError before that."""
        if self.last is None:
            raise RuntimeError("the run has not ended")
        return self.last

    async def deltas(self, history: Sequence[dict[str, Any]]) -> AsyncGenerator[str, None]:
        """Send messages until the model wants no more tools, and yield the text as it comes."""
        setup, hooks, content = self.setup, self.setup.hooks, self.prompt
        for turn in range(1, setup.max_turns + 1):
            message = self._message(content, turn)
            self.kept.append({"role": "user", "content": content})
            with Grants() as grants:
                await grants.ask(hooks.before, message)
                call = self._sending(self._request(message, history), grants)
                try:
                    async with call:
                        async for text in call:
                            yield text
                except UpstreamError as error:
                    self.failure = error
                    raise
                finally:
                    grants.usage = call.usage
                    self._count(call.usage, grants, turn)
            await hooks.finish(message, self._reply(call.message, _known(call.usage), turn))
            wanted = wanted_tools(call.message)
            self.kept += remembered(call.message, wanted)
            if not wanted:
                self.last = self._reply(call.message, self.usage, turn)
                return
            if turn < setup.max_turns:
                content = [await self._use(block, turn) for block in wanted]
        raise TooManyTurns(self.tenant, setup.max_turns)

    def _grow(self, covers: Sequence[Grant | Job], produced: int) -> None:
        """Let those who pay know of output as it comes; a job pays for that of earlier messages too."""
        before = 0 if self.unpaid is None else self.unpaid.output_tokens
        for turn in covers:
            turn.grow(produced + before if turn is self.job else produced)

    def _sending(self, request: dict[str, Any], grants: Grants) -> Sending:
        """How a message goes upstream, and under which turns."""
        if self.by is not None:
            # It may take a day, counts against no limit that a hook guards, and tells nothing about a gate.
            grants.give_back()
            return self.by.sending(self.job, request)
        covers = grants.covering(self.job)
        for turn_held in covers:
            turn_held.ensure_open()
        return Call(
            self.setup.client,
            request,
            partial(_hear, covers),
            partial(self._grow, covers),
            self.setup.call_timeout,
        )

    def _message(self, content: Prompt, turn: int) -> Message:
        session = self.session
        return Message(
            tenant=self.tenant,
            prompt=copy.deepcopy(content),  # what a hook makes of it stays with the hook
            model=self.setup.model if self.job is None else self.job.model or self.setup.model,
            turn=turn,
            session_id=None if session is None else session.id,
            job_id=None if self.job is None else self.job.id,
            user=None if session is None else session.user,
            metadata={} if session is None else session.metadata,
            deferred=self.by is not None,
        )

    def _request(self, message: Message, history: Sequence[dict[str, Any]]) -> dict[str, Any]:
        request = {**self.setup.parameters, "messages": [*history, *self.kept]}
        if self.job is not None:
            degrade(request, self.job)
        if message.user is not None:
            request["metadata"] = {"user_id": message.user}
        if self.setup.headers is not None and self.by is None:  # a batch has one head for all its requests
            request["extra_headers"] = dict(self.setup.headers(message))
        return request

    def _reply(self, message: ClaudeMessage, usage: Usage, turn: int) -> Reply:
        return Reply(
            text="".join(block.text for block in message.content if block.type == "text"),
            message=message,
            usage=usage,
            model=message.model,
            session_id=None if self.session is None else self.session.id,
            turns=turn,
        )

    def _count(self, usage: Usage | None, grants: Grants, turn: int) -> None:
        """Add a message to what the run used and, unless a hook took permits for it, to what the job pays.

        The first message is always the job's: it is what the job waited for.
        """
        self.usage = total(self.usage, _known(usage))
        if turn > 1 and self.job is not None and grants.paid_to(self.job.books):
            return
        if usage is None and turn == 1:
            self.unpaid = None
        elif self.unpaid is not None:
            self.unpaid = total(self.unpaid, _known(usage))

    async def _use(self, block: Any, turn: int) -> dict[str, Any]:
        """Call one tool and return its `tool_result` block."""
        tool = self.setup.tools.get(block.name)
        if tool is None:
            return failed_result(block.id, f"there is no tool {block.name!r}")
        call = ToolCall(
            id=block.id,
            name=block.name,
            input=block.input,
            tenant=self.tenant,
            turn=turn,
            session_id=None if self.session is None else self.session.id,
            job_id=None if self.job is None else self.job.id,
        )
        with Grants() as grants:
            await grants.ask(self.setup.hooks.tool, call)
            self.acted, grants.usage = True, None
            return await tool.answer(block.id, block.input)


def degrade(request: dict[str, Any], job: Job) -> None:
    """Change a request as the rungs say that its job has taken."""
    if job.model is not None:
        request["model"] = job.model
    if job.max_tokens is not None:
        request["max_tokens"] = min(request["max_tokens"], job.max_tokens)


def _hear(covers: Sequence[Grant | Job], signal: Signal) -> None:
    for turn in covers:
        turn.hear(signal)


def _known(usage: Usage | None) -> Usage:
    return ONE_REQUEST if usage is None else usage


def total(one: Usage, other: Usage) -> Usage:
    """The sum of two usages."""
    return Usage(
        one.requests + other.requests,
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
    )


def wanted_tools(message: ClaudeMessage) -> list[Content]:
    """The tool calls that a message ended with; one that was cut short wants nothing."""
    if message.stop_reason != "tool_use":
        return []
    return [block for block in message.content if block.type == "tool_use"]


def remembered(message: ClaudeMessage, wanted: Sequence[Content]) -> list[dict[str, Any]]:
    """An answer as the conversation goes on with it.

    Left out is what the upstream would refuse to read again: texts of nothing but white space, a tool call
    that has no result because the message was cut, thoughts that lead to nothing, and an answer of which
    nothing is left.
    """
    content = [
        block.to_dict(mode="json")
        for block in message.content
        if not (block.type == "text" and not block.text.strip()) and (block.type != "tool_use" or wanted)
    ]
    while content and content[-1]["type"] in THOUGHTS:
        content.pop()
    return [{"role": "assistant", "content": content}] if content else []
