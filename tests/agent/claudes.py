"""Two models to talk to: the simulated Claude over a socket, and one in memory for virtual time."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from anthropic import AsyncAnthropic

from agent import Agent, Tool
from scheduler import Grant, Signal, Usage
from scheduler.testing import ClaudeConfig, Fault, Latency, Script, SimulatedClaude, ToolCall
from scheduler.testing.claude.effects import Effect

MODEL = "claude-haiku-4-5"
SECRET = "the-secret-prompt"

LOOK = Script(contains="look", has_tool_result=False, text="Wait.", tools=(ToolCall(name="look"),))
DONE = Script(has_tool_result=True, text="Seen.")


def quick(*effects: Effect, times: int | None = None, **fields: Any) -> ClaudeConfig:
    """Answers of twelve words that take no time, and what goes wrong with them; "look" calls a tool."""
    faults = tuple(Fault(effect, times=times) for effect in effects)
    return ClaudeConfig(
        **{
            "latency": Latency.none(),
            "reply_tokens": 12,
            "faults": faults,
            "scripts": (LOOK, DONE),
            "keep_bodies": True,
            **fields,
        }
    )


@asynccontextmanager
async def connected(
    config: ClaudeConfig | None = None, **options: Any
) -> AsyncIterator[tuple[SimulatedClaude, Agent]]:
    """A simulated Claude and an agent on it, whose client has the SDK's default of two retries."""
    async with (
        SimulatedClaude(config or quick()) as claude,
        AsyncAnthropic(api_key="sk-test", base_url=claude.base_url) as client,
    ):
        yield claude, make_agent(client, **options)


def make_agent(client: AsyncAnthropic, **options: Any) -> Agent:
    return Agent(client, **{"model": MODEL, "draw": lambda: 0.0, **options})


def tool(name: str = "look", function: Any = None) -> Tool:
    async def look(**given: Any) -> str:
        return "a view"

    return Tool(name, "Look somewhere.", {"type": "object"}, function or look)


def sent(claude: SimulatedClaude, number: int) -> dict[str, Any]:
    """The body of the n-th request, from 0."""
    body: dict[str, Any] = json.loads(claude.requests[number].body or b"{}")
    return body


class CountedGrant(Grant):
    """A grant of nobody that remembers how it was settled."""

    def __init__(self) -> None:
        self.scheduler = None  # type: ignore[assignment]
        self.settled: list[Usage | None] = []
        self.heard: list[Signal] = []

    def settle(self, usage: Usage | None = None) -> None:
        self.settled.append(usage)

    def hear(self, signal: Signal) -> None:
        self.heard.append(signal)

    def grow(self, output_tokens: int) -> None:
        """There is no estimate."""

    def ensure_open(self) -> None:
        """There is no gate."""


class InMemoryClaude(httpx2.AsyncBaseTransport):
    """Answers without a socket: every piece of an answer takes one turn of the loop and no time.

    `answers` are used up in order, the last one for ever: a list of content blocks (or of the bytes of their
    events), or a status with headers.
    `arrivals` are times of the loop.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers) or [["Hello."]]
        self.arrivals: list[float] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.arrivals.append(asyncio.get_running_loop().time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await asyncio.sleep(0)
        if isinstance(answer, tuple):
            status, headers = answer
            return httpx2.Response(status, headers=headers, json={"type": "error", "error": {}})
        pieces = answer if isinstance(answer[0], bytes) else events(answer)
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Pieces(pieces))


class Pieces(httpx2.AsyncByteStream):
    """A body whose pieces take a turn of the loop each."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            await asyncio.sleep(0)
            yield piece

    async def aclose(self) -> None:
        await asyncio.sleep(0)


def events(blocks: list[Any], input_tokens: int = 10, output_tokens: int = 5) -> list[bytes]:
    """The events of an answer; a text is a text block, a mapping the fields of a tool call."""
    usage = {"input_tokens": input_tokens, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": []}
    told: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}}
    ]
    for index, block in enumerate(blocks):
        if isinstance(block, str):
            start: dict[str, Any] = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": block}
        else:
            start = {"type": "tool_use", "id": f"toolu_{index}", "input": {}, "name": block["name"]}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block.get("input", {}))}
        told += [
            {"type": "content_block_start", "index": index, "content_block": start},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index},
        ]
    stop = "end_turn" if all(isinstance(block, str) for block in blocks) else "tool_use"
    told += [
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop, "stop_sequence": None},
            "usage": {"output_tokens": output_tokens},
        },
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in told]


@asynccontextmanager
async def in_memory(*answers: Any, **options: Any) -> AsyncIterator[tuple[InMemoryClaude, Agent]]:
    """A model in memory and an agent on it."""
    claude = InMemoryClaude(*answers)
    async with httpx2.AsyncClient(transport=claude) as http:
        client = AsyncAnthropic(api_key="sk-test", base_url="http://claude.test", http_client=http)
        agent = make_agent(client, **options)
        # The SDK finds this out in a thread, before its first request; virtual time knows no threads.
        agent._setup.client._platform = "Linux"
        yield claude, agent


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something has happened; the test's time limit bounds it."""
    while not condition():  # noqa: ASYNC110 - what is waited for happens on the other side of a socket
        await asyncio.sleep(0.002)
