"""Results as text: JSON as it is, and the types that were registered to be more than JSON."""

from __future__ import annotations

import json
from typing import Any, Protocol, Self, TypeVar

MOST_BYTES = 256_000_000
"""Of prompts or results, as JSON, that go to the database together: a message to it has an end."""


class Result(Protocol):
    """A type of results that can be written as JSON and read again."""

    def to_json(self) -> Any:
        """All of it, as JSON values."""

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The same again."""


R = TypeVar("R", bound=type[Result])

_types: dict[str, type[Result]] = {}


def register(name: str, kind: R) -> R:
    """Let handlers return a `kind` whatever the store: it is kept under `name`, which must never change."""
    _types[name] = kind
    return kind


def dump(result: Any) -> str:
    """A result as text. Raises TypeError for what is neither JSON nor of a registered type."""
    for name, kind in _types.items():
        if isinstance(result, kind):
            return json.dumps({"type": name, "value": result.to_json()})
    return json.dumps({"value": result})


def load(text: str) -> Any:
    """The result that `dump` wrote. Raises TypeError for a type that this process has not registered."""
    saved = json.loads(text)
    name = saved.get("type")
    if name is None:
        return saved["value"]
    if name not in _types:
        raise TypeError(
            f"the result is of type {name!r}, which nothing here has registered: import its package"
        )
    return _types[name].from_json(saved["value"])
