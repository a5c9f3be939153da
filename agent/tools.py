"""Tools: functions that the model may call."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")


class ToolError(Exception):
    """A tool raises this to tell the model what went wrong.

    The text goes to the model. Of any other exception the model is told only the class, since its text may
    hold what is not meant for it.
    """


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call: `function` is awaited with the input's fields as keywords.

    It returns a text, a list of content blocks, or anything that JSON can write. `input_schema` is a JSON
    schema of type object. Raises ValueError or TypeError for what the upstream would refuse.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any] = field(repr=False)
    function: Callable[..., Awaitable[Any]] = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name: must be a string, got {self.name!r}")
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name: must be 1 to 128 letters, digits, '_' or '-', got {self.name!r}")
        if not isinstance(self.description, str):
            raise TypeError(f"description: must be a text, got {type(self.description).__name__}")
        if not isinstance(self.input_schema, Mapping):
            raise TypeError(f"input_schema: must be a mapping (tool {self.name!r})")
        if self.input_schema.get("type") != "object":
            raise ValueError(f"input_schema: must be a JSON schema of type 'object' (tool {self.name!r})")
        if not is_async(self.function):
            raise TypeError(f"function: must be async, got {self.function!r} (tool {self.name!r})")

    def definition(self) -> dict[str, Any]:
        """The tool as the Messages API wants it."""
        return {
            "name": self.name,
            "description": self.description,
            "input_schema": dict(self.input_schema),
        }

    async def answer(self, call_id: str, given: object) -> dict[str, Any]:
        """Call the function and return a `tool_result` block; a failure is one too."""
        if not isinstance(given, Mapping):
            return failed_result(call_id, "the input is not an object")
        try:
            result = as_content(await self.function(**given))
        except ToolError as error:
            return failed_result(call_id, str(error))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return tool_failed(call_id, error)  # not we were cancelled, but what the tool awaited
        except Exception as error:  # noqa: BLE001 - the model is told, and decides what to do without it
            return tool_failed(call_id, error)
        return {"type": "tool_result", "tool_use_id": call_id, "content": result}


def is_async(function: object) -> bool:
    """Whether calling it gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object whose `__call__` is async will do
    )


def failed_result(call_id: str, text: str) -> dict[str, Any]:
    """A `tool_result` block that reports an error to the model."""
    sendable = text.encode("utf-8", "replace").decode() or "failed"
    return {"type": "tool_result", "tool_use_id": call_id, "content": sendable, "is_error": True}


def tool_failed(call_id: str, error: BaseException) -> dict[str, Any]:
    """A `tool_result` block that tells the model which class of exception a tool raised."""
    return failed_result(call_id, f"the tool failed: {type(error).__name__}")


def as_content(result: object) -> str | list[Any]:
    """What a tool returned, as the content of a `tool_result`: a copy. Raises for what cannot be sent."""
    if isinstance(result, str):
        result.encode()
        return result
    if isinstance(result, list) and result and all(isinstance(b, dict) and "type" in b for b in result):
        text = json.dumps(result, ensure_ascii=False, allow_nan=False)
        text.encode()
        copied: list[Any] = json.loads(text)
        return copied
    return "" if result is None else json.dumps(result)
