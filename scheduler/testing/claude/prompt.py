"""What a request body weighs: its tokens, its digest, its cache breakpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

IMAGE_TOKENS = 1_600
MESSAGE_TOKENS = 4
REQUEST_TOKENS = 3
BYTES_PER_TOKEN = 4
CACHE_TTL_S = 300
CACHE_TTL_LONG_S = 3_600


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A prefix marked with `cache_control`: its digest, its tokens, how long it is kept in seconds."""

    digest: bytes
    tokens: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """The measures of one request; `last_text` is the text of the last user message."""

    tokens: int
    digest: bytes
    last_text: str
    has_tool_result: bool
    breakpoints: tuple[Breakpoint, ...]


class _Scale:
    """Sums up blocks in order, and remembers the breakpoints among them."""

    def __init__(self) -> None:
        self.breakpoints: list[Breakpoint] = []
        self._text_bytes = 0
        self._flat_tokens = 0
        self._prefix = hashlib.sha256()

    @property
    def tokens(self) -> int:
        return -(-self._text_bytes // BYTES_PER_TOKEN) + self._flat_tokens

    def add_flat(self, tokens: int) -> None:
        self._flat_tokens += tokens

    def add_text(self, text: str) -> None:
        # A lone surrogate is legal JSON and no legal UTF-8.
        data = text.encode("utf-8", "surrogatepass")
        self._text_bytes += len(data)
        self._prefix.update(data)

    def add(self, block: object) -> None:
        """Add a block of content, or a string, or a list of either."""
        if isinstance(block, str):
            self.add_text(block)
        elif isinstance(block, list):
            for part in block:
                self.add(part)
        elif isinstance(block, dict):
            self._add_block(block)

    def add_json(self, value: Mapping[str, Any]) -> None:
        """Add a value by its JSON, as tools are counted."""
        self.add_text(_compact({name: part for name, part in value.items() if name != "cache_control"}))
        self.mark(value)

    def mark(self, block: Mapping[str, Any]) -> None:
        """Remember the prefix that ends here if the block asks for it."""
        control = block.get("cache_control")
        if isinstance(control, dict):
            ttl_s = CACHE_TTL_LONG_S if control.get("ttl") == "1h" else CACHE_TTL_S
            self.breakpoints.append(Breakpoint(self._prefix.digest(), self.tokens, ttl_s))

    def _add_block(self, block: dict[str, Any]) -> None:
        match block.get("type"):
            case "text":
                self.add_text(str(block.get("text", "")))
            case "image" | "document":
                self.add_flat(IMAGE_TOKENS)
                self._prefix.update(_compact(block.get("source")).encode())
            case "tool_result":
                self.add(block.get("content", ""))
            case "thinking":
                self.add_text(str(block.get("thinking", "")))
            case _:
                self.add_json({name: part for name, part in block.items() if name != "cache_control"})
        self.mark(block)


def measure(body: Mapping[str, Any], seed: int) -> Prompt:
    """Weigh a request body of any shape; two bodies that ask the same have the same digest."""
    scale = _Scale()
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict):
            scale.add_json(tool)
    scale.add(body.get("system", ""))
    messages = [message for message in body["messages"] if isinstance(message, dict)]
    for message in messages:
        scale.add_flat(MESSAGE_TOKENS)
        scale.add(message.get("content", ""))
    last = next((message for message in reversed(messages) if message.get("role") == "user"), {})
    content = last.get("content", "")
    asked = [seed, body.get("model"), body.get("system"), body["messages"], tools]
    return Prompt(
        tokens=scale.tokens + REQUEST_TOKENS,
        digest=hashlib.sha256(_compact(asked).encode()).digest(),
        last_text=" ".join(_texts(content)),
        has_tool_result=isinstance(content, list) and any(_is_result(block) for block in content),
        breakpoints=tuple(scale.breakpoints),
    )


def _is_result(block: object) -> bool:
    return isinstance(block, dict) and block.get("type") == "tool_result"


def _texts(content: object) -> Iterator[str]:
    """Yield the texts of a message, those of tool results included."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for block in content:
            if isinstance(block, dict) and block.get("type") == "text":
                yield str(block.get("text", ""))
            elif _is_result(block):
                yield from _texts(block.get("content", ""))


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How a prompt's tokens split: fresh, written to the cache, read from it."""

    fresh: int
    written: int
    read: int


class PromptCache:
    """Which prefixes a credential has cached, until when in simulated nanoseconds; the oldest go first."""

    def __init__(self, size_max: int) -> None:
        """Keep at most `size_max` prefixes."""
        self._size_max = size_max
        self._until_ns: dict[tuple[str, str, bytes], int] = {}

    def use(self, credential: str, model: str, prompt: Prompt, now_ns: int) -> CacheUse:
        """Split a prompt's tokens, and keep its prefixes from now on."""
        if not prompt.breakpoints:
            return CacheUse(prompt.tokens, 0, 0)
        keys = [(credential, model, point.digest) for point in prompt.breakpoints]
        hits = [
            point.tokens
            for key, point in zip(keys, prompt.breakpoints, strict=True)
            if self._until_ns.get(key, -1) >= now_ns
        ]
        for key, point in zip(keys, prompt.breakpoints, strict=True):
            self._until_ns.pop(key, None)
            self._until_ns[key] = now_ns + point.ttl_s * 1_000_000_000
        while len(self._until_ns) > self._size_max:
            del self._until_ns[next(iter(self._until_ns))]
        read, cached = max(hits, default=0), prompt.breakpoints[-1].tokens
        return CacheUse(prompt.tokens - cached, cached - read, read)
