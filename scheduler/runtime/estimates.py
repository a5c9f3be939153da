"""What a job will probably use: its input is counted before the call, its output learned from earlier ones.

An estimate is only what is reserved: at settle the real usage replaces it, in the buckets and in the fairness
account. How it is made and learned is in `scheduler.core.learning`; here is how input is counted, and what
was learned in this process. Over a store that is in the database, for all processes.
"""

from __future__ import annotations

import inspect
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from scheduler.core import learning
from scheduler.core.quota import Cost, Usage, amount, positive, whole
from scheduler.errors import UpstreamError

BYTES_PER_TOKEN = 4
MESSAGE_TOKENS = 7
"""What the frame of a message takes."""
IMAGE_TOKENS = 1600
"""About the most that an image takes (Anthropic's documentation of vision)."""

Count = Callable[[Any], int | Awaitable[int]]
"""How many input tokens a prompt has."""


def count_cheaply(prompt: Any) -> int:
    """About how many input tokens a prompt has: its UTF-8 bytes over four, and a constant for an image."""
    if isinstance(prompt, str):
        return MESSAGE_TOKENS + _tokens(prompt)
    return MESSAGE_TOKENS + sum(map(_block, prompt))


def _block(block: Any) -> int:
    if not isinstance(block, dict):
        return _tokens(json.dumps(block))
    if block.get("type") == "image":
        return IMAGE_TOKENS
    content = block.get("content")
    if isinstance(content, list):  # a message, or the result of a tool
        return sum(map(_block, content))
    text = block.get("text", content)
    return _tokens(text if isinstance(text, str) else json.dumps(block))


def _tokens(text: str) -> int:
    return -(-(len(text) if text.isascii() else len(text.encode())) // BYTES_PER_TOKEN)


class Estimates:
    """Estimates what jobs will use, and learns from what they did.

    `count`: how many input tokens a prompt has, a function or a coroutine function (`Agent.count` asks the
    API); by default a cheap count, which also stands in if it raises `UpstreamError`. What the real input has
    beyond the count (a system prompt, tools, a history) is learned. `output_tokens`: what is assumed before
    anything is learned. `margin`: how many times the learned mean is reserved, since answers that are longer
    than the mean are under way for longer too; what was not used comes back. `memory`: most pairs of tenant
    and gate that are remembered, those seen last; a store remembers all of its tenants.
    """

    def __init__(
        self,
        count: Count = count_cheaply,
        *,
        output_tokens: int = 256,
        margin: float = 1.5,
        memory: int = 10_000,
    ) -> None:
        if not callable(count):
            raise TypeError(f"count: must be a callable, got {count!r}")
        self._count = count
        self.takes_a_while = inspect.iscoroutinefunction(count)
        first = whole("output_tokens", output_tokens, 1)
        self.knobs = learning.Knobs(first, float(positive("margin", margin)))
        self._memory = whole("memory", memory, 1)
        self._gates: dict[str, learning.Mean] = {}
        self._known: OrderedDict[tuple[str, str], learning.Mean] = OrderedDict()

    def count(self, prompt: Any) -> int:
        """How many input tokens a prompt has, where that need not be awaited."""
        counted: Any = self._count(prompt)
        if self._count is count_cheaply:
            return counted  # type: ignore[no-any-return]
        return amount("count: what it returned", counted)

    async def count_later(self, prompt: Any) -> int:
        """How many input tokens a prompt has, where somebody else knows."""
        try:
            counted: Any = self._count(prompt)
            return amount("count: what it returned", await counted)
        except UpstreamError:
            return count_cheaply(prompt)

    def estimate(self, tenant: str, gate: str, counted: int) -> Cost:
        """What a job of so many counted input tokens will probably use."""
        learned = self._known.get((tenant, gate)) or self._gates.get(gate)
        return learning.estimate(counted, learned, self.knobs)

    def learn(self, tenant: str, gate: str, counted: int, usage: Usage) -> None:
        """Take note of what a job of so many counted tokens used; one without output tells nothing."""
        if not learning.teaches(usage):
            return
        key = tenant, gate
        known, told = self._known.get(key), self._gates.get(gate)
        if known is not None and told is not None:  # which are changed
            learning.learn(known, told, counted, usage)
            self._known.move_to_end(key)
            return
        self._known[key], self._gates[gate] = learning.learn(known, told, counted, usage)
        if len(self._known) > self._memory:
            self._known.popitem(last=False)
