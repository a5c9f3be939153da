"""What the simulated model answers: it follows from seed and request, equal requests get equal replies."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scheduler.testing.claude.config import ClaudeConfig
from scheduler.testing.claude.prompt import BYTES_PER_TOKEN, Prompt
from scheduler.testing.claude.scripts import Script

_WORDS_TEXT = """
    a about above after again all along also always an and another any around as at away back be before
    begin below between both bring build but by call can carry change clear close cold come could
    country cut day do door down draw each early earth end enough even every far few field find first
    follow form found four from full garden give go good grow half hand hard have head hear help here
    high hold home hour house how idea if in into it just keep kind know land large last late learn
    leave left letter life light line list little long look low make many mark may measure
"""
_WORDS = _WORDS_TEXT.split()

# A token of a reply is a word with the blanks before it.
_PIECE = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class Block:
    """One content block: a text, or a tool call whose input is JSON text; `pieces` are its tokens."""

    pieces: tuple[str, ...]
    tool_id: str | None = None
    tool_name: str | None = None

    @property
    def text(self) -> str:
        """The whole text, or the input of the tool as JSON."""
        return "".join(self.pieces)

    def to_content(self) -> dict[str, Any]:
        """Return the block as a message carries it."""
        if self.tool_name is None:
            return {"type": "text", "text": self.text}
        return {
            "type": "tool_use",
            "id": self.tool_id,
            "name": self.tool_name,
            "input": json.loads(self.text),
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer."""

    blocks: tuple[Block, ...]
    stop_reason: str
    stop_sequence: str | None = None

    @property
    def output_tokens(self) -> int:
        """The tokens of all blocks, at least one."""
        return max(1, sum(len(block.pieces) for block in self.blocks))


def compose(
    config: ClaudeConfig, body: Mapping[str, Any], prompt: Prompt, script: Script | None, draw: random.Random
) -> Reply:
    """Compose the answer to a request; `draw` must depend on the request only."""
    tools: tuple[Block, ...] = ()
    if script is None:
        # One more than may be sent, so that a reply which is cut is known to be.
        pieces = _generated(config, draw, body["max_tokens"] + 1)
    else:
        text = script.text + (prompt.last_text if script.echo else "")
        pieces = _PIECE.findall(text)
        tools = tuple(
            Block(_json_pieces(call.input), call.id or f"toolu_{draw.randbytes(12).hex()}", call.name)
            for call in script.tools
        )
    ending = "tool_use" if tools else "end_turn"
    if script is not None and script.stop_reason is not None:
        ending = script.stop_reason
    return _cut(pieces, tools, ending, body)


def _generated(config: ClaudeConfig, draw: random.Random, count_max: int) -> list[str]:
    count = config.reply_tokens
    if count is None:
        spread = draw.lognormvariate(0.0, config.reply_tokens_sigma)
        count = max(1, round(config.reply_tokens_median * spread))
    # Drawn word by word from the front, so that a smaller `max_tokens` is given the beginning of the same
    # text.
    words = draw.choices(_WORDS, k=min(count, count_max))
    return [words[0].capitalize(), *(" " + word for word in words[1:])]


def _cut(pieces: list[str], tools: tuple[Block, ...], ending: str, body: Mapping[str, Any]) -> Reply:
    """Cut the text at a stop sequence or at `max_tokens`."""
    stop_sequence = None
    text = "".join(pieces)
    asked = body.get("stop_sequences")
    sequences = [part for part in asked if isinstance(part, str) and part] if isinstance(asked, list) else []
    found = [(at, sequence) for sequence in sequences if (at := text.find(sequence)) >= 0]
    if found:
        at, stop_sequence = min(found)
        pieces, tools, ending = _PIECE.findall(text[:at]), (), "stop_sequence"
    if len(pieces) > body["max_tokens"]:
        pieces, tools, ending, stop_sequence = pieces[: body["max_tokens"]], (), "max_tokens", None
    texts = (Block(tuple(pieces)),) if pieces or not tools else ()
    return Reply((*texts, *tools), ending, stop_sequence)


def _json_pieces(value: Mapping[str, Any]) -> tuple[str, ...]:
    text = json.dumps(value)
    return tuple(text[at : at + BYTES_PER_TOKEN] for at in range(0, len(text), BYTES_PER_TOKEN))
