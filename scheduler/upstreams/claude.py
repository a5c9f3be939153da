"""The Anthropic SDK adapter: one attempt of one message, its usage, and what its failure means.

Besides the command line only this package imports `anthropic`. Every failure of an attempt becomes one
`UpstreamError`, raised without cause and context: the SDK's exceptions carry requests and response bodies,
and so prompts, into whatever logs an exception chain.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType, TracebackType
from typing import Any, Self

import anthropic
import anthropic.types
import httpx2

from scheduler.core.quota import NOTHING, Usage
from scheduler.core.signals import Signal
from scheduler.errors import UpstreamError
from scheduler.runtime.arguments import check_prompt
from scheduler.upstreams import signals
from scheduler.upstreams.failures import Kind, failed, failure, headers_of, is_refusal, outcome

__all__ = [
    "BYTES_MAX",
    "NOTHING",
    "Call",
    "Client",
    "Content",
    "Kind",
    "Message",
    "check_prompt",
    "count_tokens",
    "is_complete",
    "outcome",
    "unretried",
    "usage_of",
]

Client = anthropic.AsyncAnthropic
"""What the agent talks through."""

Message = anthropic.types.Message
"""A complete answer, as the SDK gives it."""

Content = anthropic.types.ContentBlock
"""One block of an answer."""

BYTES_MAX = 32_000_000
"""Bytes of one request, by the API's limit."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

TOKENS_MAX = 1 << 50
"""In one count; one that says more is not believed."""

REFUSED = Usage(1, 0, 0)
BYTES_PER_TOKEN = 4

GROWTH = 64
"""Output tokens between two looks at whether there are more than were reserved."""


def unretried(client: Client) -> Client:
    """The same client, on the same connections, without retries of its own: the scheduler repeats."""
    return client.with_options(max_retries=0)


def usage_of(message: Message) -> Usage:
    """What an answer used, as the upstream's limits count it: reading from the prompt cache is free."""
    return _usage(getattr(message, "usage", None))


def is_complete(message: object) -> bool:
    """Whether an answer has what an answer has. The SDK does not check shapes: anything may be missing."""
    content = getattr(message, "content", None)
    are_blocks = isinstance(content, list) and all(map(_is_block, content))
    return are_blocks and _has_texts(message, "model", "stop_reason")


def _is_block(block: object) -> bool:
    match getattr(block, "type", None):
        case "text":
            return _has_texts(block, "text")
        case "tool_use":
            return _has_texts(block, "id", "name")
        case kind:
            return isinstance(kind, str)


def _has_texts(value: object, *names: str) -> bool:
    return all(isinstance(getattr(value, name, None), str) for name in names)


def _usage(counts: object) -> Usage:
    fresh, written = _count(counts, "input_tokens"), _count(counts, "cache_creation_input_tokens")
    return Usage(1, fresh + written, _count(counts, "output_tokens"))


def _count(counts: object, name: str) -> int:
    # The SDK builds its models without checking them: a field may hold anything, or be missing.
    value = getattr(counts, name, None)
    return min(value, TOKENS_MAX) if isinstance(value, int) and value > 0 else 0


def _bytes_of(text: str) -> int:
    return len(text if text.isascii() else text.encode("utf-8", "surrogatepass"))


async def count_tokens(client: Client, parameters: Mapping[str, Any], content: str | list[Any]) -> int:
    """How many input tokens one message of the user has, under the parameters of a request."""
    counted = {name: parameters[name] for name in ("model", "system", "tools") if name in parameters}
    problem: UpstreamError
    try:
        found = await client.messages.count_tokens(messages=[{"role": "user", "content": content}], **counted)
        tokens = _count(found, "input_tokens")
        if tokens:
            return tokens
        problem = UpstreamError(Kind.MALFORMED, 200)
    except (anthropic.AnthropicError, httpx2.HTTPError, ValueError) as error:
        problem = failure(error)
    # Raised out here: an exception of the SDK carries the prompt.
    raise problem


class Call:
    """One attempt of one message: streams it, accumulates it, and knows what it has used so far.

    ``async with Call(client, request) as call: async for text in call: …``, then `message`. Everything that
    goes wrong upstream is raised as `UpstreamError`. Leaving the block early ends the upstream's work.
    """

    def __init__(
        self,
        client: Client,
        request: Mapping[str, Any],
        listener: Callable[[Signal], object] | None = None,
        growing: Callable[[int], object] | None = None,
        timeout: float | None = None,
    ) -> None:
        """`request`: the arguments of ``client.messages.stream``; the client must not retry by itself.

        `listener` is told how the upstream took the call: as soon as the head of its answer is there, and
        again if the answer breaks off for want of capacity. `growing` is told about how many output tokens
        there are, every 64 of them. `timeout`: seconds until its answer must be complete; the client's own
        bound silence only, which a ping ends.
        """
        self._client = client
        self._listener = listener
        self._growing = growing
        self._timeout = timeout
        self._due: float | None = None
        self._told = 0
        self._request = request
        self._stream: Any = None
        self._known: Usage | None = NOTHING
        self._produced = 0
        self._complete = False
        self._message: Message | None = None

    @property
    def usage(self) -> Usage | None:
        """What it used, as far as that is known.

        Nothing before it began; one request and no tokens once it was refused; None if it ended, or goes on,
        without a word about its usage. A stream that was cut has the input it reported, and about one output
        token for every four bytes that arrived.
        """
        if self._known is None or self._complete:
            return self._known
        produced = max(self._known.output_tokens, self.produced)
        return Usage(self._known.requests, self._known.input_tokens, produced)

    @property
    def produced(self) -> int:
        """About how many output tokens have come so far: one for every four bytes."""
        return math.ceil(self._produced / BYTES_PER_TOKEN)

    @property
    def message(self) -> Message:
        """The complete answer; RuntimeError before there is one."""
        if self._message is None:
            raise RuntimeError("the message is not complete")
        return self._message

    async def __aenter__(self) -> Self:
        problem: UpstreamError | None = None
        opening = self._client.messages.stream(**self._request)
        self._known = None
        if self._timeout is not None:
            self._due = asyncio.get_running_loop().time() + self._timeout
        try:
            async with asyncio.timeout_at(self._due):
                self._stream = await opening.__aenter__()
        except TimeoutError:
            problem = UpstreamError(Kind.TIMEOUT)
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            problem = failure(error)
            if is_refusal(problem):
                self._known = REFUSED
            self._tell(signals.refused(problem, headers_of(error)))
        except UnicodeError:
            self._known = NOTHING
        except Exception:
            # Arguments that cannot be sent: the caller's mistake, found before anything went out.
            self._known = NOTHING
            raise
        else:
            self._tell(signals.accepted(self._stream.response.headers))
            return self
        # Raised out here: the error of an encoder carries all that it could not encode.
        raise problem or ValueError("request: must be valid Unicode")

    def _tell(self, signal: Signal | None) -> None:
        if signal is not None and self._listener is not None:
            self._listener(signal)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(Exception):  # a connection that is broken already cannot be closed better
            await self._stream.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        problem: UpstreamError | None = None
        try:
            async with asyncio.timeout_at(self._due):
                while True:
                    text = self._take(await anext(self._stream))
                    if text:
                        return text
        except StopAsyncIteration:
            pass
        except TimeoutError:
            problem = None if self._complete else UpstreamError(Kind.TIMEOUT)
        except Exception as error:  # noqa: BLE001 - wrong shapes surface as any exception inside the SDK
            # What breaks after the last event breaks nothing.
            problem = None if self._complete else failure(error, reading=True)
        problem = problem or self._finish()
        # Raised out here, because an exception raised while another is handled carries that along.
        if problem is not None:
            self._tell(signals.refused(problem, NO_HEADERS))
            raise problem
        raise StopAsyncIteration

    def _take(self, event: Any) -> str:
        """Note what an event says, and return the text that it brings."""
        match event.type:
            case "text":
                return str(event.text)
            case "message_start":
                self._known = _usage(event.message.usage)
            case "content_block_delta":
                for name in ("text", "partial_json", "thinking"):
                    self._produced += _bytes_of(getattr(event.delta, name, None) or "")
                if self._growing is not None and self.produced >= self._told + GROWTH:
                    self._told = self.produced
                    self._growing(self._told)
            case "message_delta" | "message_stop":
                self._known = _usage(self._stream.current_message_snapshot.usage)
                self._complete = event.type == "message_stop"
        return ""

    def _finish(self) -> UpstreamError | None:
        """Keep the message that a stream has built, or say why there is none."""
        if not self._complete:
            head = self._stream.response.headers
            is_stream = head.get("content-type", "").startswith("text/event-stream")
            return failed(Kind.TRUNCATED_STREAM if is_stream else Kind.MALFORMED, self._stream.response)
        message = self._stream.current_message_snapshot
        if not is_complete(message):
            return failed(Kind.MALFORMED, self._stream.response)
        self._message = message
        return None
