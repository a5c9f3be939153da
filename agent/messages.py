"""What hooks and callers see: messages, replies and tool calls. Values whose texts stay out of any repr."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from scheduler import Receipt, Usage
from scheduler.stores.results import register
from scheduler.upstreams.claude import Message as ClaudeMessage

Prompt = str | list[dict[str, Any]]
"""A text, or a list of Messages-API content blocks."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Message:
    """One request that is about to be sent, or was.

    `prompt` is what it adds to the conversation: the caller's prompt in turn 1 of a run, the results of the
    tools in later turns. `session_id` is None for a job that has no session, `job_id` for a run that did not
    come through a scheduler. `user` and `metadata` are the session's. `deferred`: it goes upstream in a
    message batch, whenever there is room for that.
    """

    tenant: str
    prompt: Prompt = field(repr=False)
    model: str
    turn: int
    session_id: str | None = None
    job_id: str | None = None
    user: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    deferred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reply:
    """An answer. `run`, `stream` and jobs give the last one of a run, after-hooks get each one.

    `text` is its text, `message` all of it as the SDK's `Message`. `usage` is the whole run's for a caller,
    and that one message's for a hook. `turns` counts the run's messages up to this one. `receipt` says how
    the job was served that asked for it, None for a run that did not come through a scheduler.
    """

    text: str = field(repr=False)
    message: ClaudeMessage = field(repr=False)
    usage: Usage
    model: str
    session_id: str | None
    turns: int
    receipt: Receipt | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, for a store of results."""
        used = self.usage
        return {
            "text": self.text,
            "message": self.message.model_dump(mode="json"),
            "usage": [used.requests, used.input_tokens, used.output_tokens],
            "model": self.model,
            "session_id": self.session_id,
            "turns": self.turns,
            "receipt": None if self.receipt is None else self.receipt.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The reply that `to_json` wrote. Fields of a newer SDK are kept, and missing ones are left out."""
        message = ClaudeMessage.construct(**value["message"])
        told = value.get("receipt")
        receipt = None if told is None else Receipt.from_json(told)
        return cls(**{**value, "message": message, "usage": Usage(*value["usage"]), "receipt": receipt})


register("agent.Reply", Reply)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ToolCall:
    """A tool that the model wants to be called, before it is. `turn` is that of the message which asked."""

    id: str
    name: str
    input: Mapping[str, Any] = field(repr=False)
    tenant: str
    turn: int
    session_id: str | None = None
    job_id: str | None = None
