"""Arguments, checked where they come in: the error names the argument and what is wrong with it."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from agent.messages import Prompt
from agent.tools import Tool


def by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    """Tools by name; raises TypeError or ValueError for what is no tool or has a name twice."""
    named: dict[str, Tool] = {}
    for tool in tools:
        if not isinstance(tool, Tool):
            raise TypeError(f"tools: must be Tool objects, got {type(tool).__name__}")
        if tool.name in named:
            raise ValueError(f"tools: there are two of the name {tool.name!r}")
        named[tool.name] = tool
    return named


def text_of(name: str, value: str) -> str:
    """Check a text that must not be empty."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: must be a string, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{name}: must not be empty")
    return value


def at_least_one(name: str, value: int) -> int:
    """Check a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: must be at least 1, got {value!r}")
    return value


def own_copy(prompt: Prompt) -> Prompt:
    """A prompt that the caller cannot change any more; raises TypeError."""
    if not isinstance(prompt, str | list):
        raise TypeError(f"prompt: must be a text or a list of content blocks, got {type(prompt).__name__}")
    return copy.deepcopy(prompt)


def seconds(name: str, value: float) -> float:
    """Check a duration above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: must be seconds, got {value!r}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: must be finite seconds above 0, got {value!r}")
    return float(value)
