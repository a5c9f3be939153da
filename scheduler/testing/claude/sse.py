"""Messages on the wire: as one JSON body, or as server-sent events."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scheduler.testing.claude.config import Latency
from scheduler.testing.claude.frames import PING, Delivery, Frame
from scheduler.testing.claude.prompt import CacheUse
from scheduler.testing.claude.replies import Block, Reply

# A plain answer is charged in so many steps while it is produced.
PLAIN_STEPS = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply with all that its message says about it."""

    request_id: str
    message_id: str
    model: str
    reply: Reply
    use: CacheUse

    def message(self, *, complete: bool) -> dict[str, Any]:
        """Return the message, or its empty beginning as `message_start` carries it."""
        reply = self.reply
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [block.to_content() for block in reply.blocks] if complete else [],
            "stop_reason": reply.stop_reason if complete else None,
            "stop_sequence": reply.stop_sequence if complete else None,
            "usage": {
                "input_tokens": self.use.fresh,
                "cache_creation_input_tokens": self.use.written,
                "cache_read_input_tokens": self.use.read,
                "output_tokens": reply.output_tokens if complete else 1,
                "service_tier": "standard",
            },
        }


def as_body(answer: Answer) -> Delivery:
    """Deliver an answer as one JSON body."""
    total = answer.reply.output_tokens
    step = -(-total // PLAIN_STEPS)
    steps = [Frame(min(step, total - done), b"") for done in range(0, total, step)]
    body = json.dumps(answer.message(complete=True)).encode()
    return Delivery(answer.request_id, (*steps, Frame(0, body)), events=False, length=len(body))


def as_events(answer: Answer, latency: Latency, draw: random.Random) -> Delivery:
    """Deliver an answer as events: the opening, content deltas, the closing."""
    reply = answer.reply
    start = _event("message_start", {"message": answer.message(complete=False)})
    frames: list[Frame] = []
    opening = start
    for index, block in enumerate(reply.blocks):
        opening += _block_start(index, block)
        if index == 0:
            opening += PING
        for tokens, text in _chunks(block, latency, draw):
            # What opens a block travels with its first delta, save at the very beginning.
            if not frames:
                frames.append(Frame(0, opening))
                opening = b""
            frames.append(Frame(tokens, opening + _delta(index, block, text)))
            opening = b""
        opening += _event("content_block_stop", {"index": index})
    if not frames:
        # Nothing to say costs a token too, as usage says.
        frames.append(Frame(reply.output_tokens, b""))
    delta = {"stop_reason": reply.stop_reason, "stop_sequence": reply.stop_sequence}
    closing = _event("message_delta", {"delta": delta, "usage": {"output_tokens": reply.output_tokens}})
    frames.append(Frame(0, opening + closing + _event("message_stop", {})))
    return Delivery(answer.request_id, tuple(frames), events=True)


def _chunks(block: Block, latency: Latency, draw: random.Random) -> Iterator[tuple[int, str]]:
    smallest = latency.chunk_tokens_min
    spread = latency.chunk_tokens_max - smallest + 1
    at = 0
    while at < len(block.pieces):
        pieces = block.pieces[at : at + smallest + int(draw.random() * spread)]
        at += len(pieces)
        yield len(pieces), "".join(pieces)


def _block_start(index: int, block: Block) -> bytes:
    empty: dict[str, Any] = {"type": "text", "text": ""}
    if block.tool_name is not None:
        empty = {"type": "tool_use", "id": block.tool_id, "name": block.tool_name, "input": {}}
    return _event("content_block_start", {"index": index, "content_block": empty})


def _delta(index: int, block: Block, text: str) -> bytes:
    """Write one delta; by hand, because these are nearly all of the events."""
    kind, field = ("text_delta", "text") if block.tool_name is None else ("input_json_delta", "partial_json")
    return (
        f'event: content_block_delta\ndata: {{"type": "content_block_delta", "index": {index}, '
        f'"delta": {{"type": "{kind}", "{field}": {json.dumps(text)}}}}}\n\n'
    ).encode()


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()
