"""Scripted answers: which request gets which reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scheduler.testing.claude.loading import build, require
from scheduler.testing.claude.prompt import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A `tool_use` block of a scripted answer; `id` is drawn from the seed unless given."""

    name: str
    input: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None

    @classmethod
    def from_mapping(cls, values: object, *, where: str = "tool") -> ToolCall:
        """Build from a JSON or TOML table; raises `ConfigError`."""
        return build(cls, values, where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One rule: a request that fits every condition given gets this answer. The first rule that fits wins.

    Conditions: `model` is the exact name; `contains` is looked for in the text of the last user message, tool
    results included; `has_tool_result` says whether that message must (or must not) carry one; `times` ends
    the rule after so many answers.

    Answer: `text`, or with `echo` the text of the last user message after it, then the `tools`. `stop_reason`
    is `tool_use` when there are tools, otherwise `end_turn`, unless given. Text is cut at `max_tokens`; tool
    calls are not.
    """

    model: str | None = None
    contains: str | None = None
    has_tool_result: bool | None = None
    times: int | None = None
    text: str = ""
    echo: bool = False
    tools: tuple[ToolCall, ...] = ()
    stop_reason: str | None = None

    def __post_init__(self) -> None:
        """Refuse a rule that says nothing and a count below one."""
        require(
            bool(self.text or self.echo or self.tools), "script.text", self.text, "needs text, echo or tools"
        )
        require(self.times is None or self.times >= 1, "script.times", self.times, "must be at least 1")

    @classmethod
    def from_mapping(cls, values: object, *, where: str = "script") -> Script:
        """Build from a JSON or TOML table; raises `ConfigError`."""
        return build(cls, values, where)

    def fits(self, model: str, prompt: Prompt) -> bool:
        """Whether a request meets every condition."""
        return (
            (self.model is None or self.model == model)
            and (self.contains is None or self.contains in prompt.last_text)
            and (self.has_tool_result is None or self.has_tool_result == prompt.has_tool_result)
        )


class ScriptBook:
    """The rules in force, and how often each has answered."""

    def __init__(self, scripts: tuple[Script, ...]) -> None:
        """Start every rule unused."""
        self._scripts = scripts
        self._used = [0] * len(scripts)

    def choose(self, model: str, prompt: Prompt) -> Script | None:
        """Return the first rule that fits and is not used up, and count it."""
        for index, script in enumerate(self._scripts):
            spent = script.times is not None and self._used[index] >= script.times
            if not spent and script.fits(model, prompt):
                self._used[index] += 1
                return script
        return None
