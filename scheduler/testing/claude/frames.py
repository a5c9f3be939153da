"""An answer as frames: what is sent, which tokens it costs, how it ends. Faults rewrite these frames."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
End = Literal["reset", "close"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One piece: the output tokens spent on it, its bytes, a silence before it, the connection's end after.

    The silence is in simulated seconds, beside the time that the tokens take.
    """

    tokens: int
    data: bytes
    pause_s: float = 0.0
    end: End | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """An answer ready to be sent.

    As `events` the frames are the opening, one per content delta, and the closing; otherwise frames without
    data, which only take time, and the body last. `length` is announced in the head; without it the body is
    chunked.
    """

    request_id: str
    frames: tuple[Frame, ...]
    events: bool
    length: int | None = None

    @property
    def body(self) -> bytes:
        """All bytes of the answer."""
        return b"".join(frame.data for frame in self.frames)

    def with_frames(self, frames: tuple[Frame, ...], *, same_length: bool = False) -> Delivery:
        """Return the answer with other frames; the announced length follows unless it is kept."""
        if self.length is None or same_length:
            return dataclasses.replace(self, frames=frames)
        return dataclasses.replace(self, frames=frames, length=sum(len(frame.data) for frame in frames))

    def split_at(self, after_chunks: int | None) -> tuple[tuple[Frame, ...], tuple[Frame, ...]]:
        """Split the frames after some content deltas, before everything (`None`), or before a plain body."""
        if not self.events:
            cut = len(self.frames) - 1
        elif after_chunks is None:
            cut = 0
        else:
            cut = 1 + min(after_chunks, len(self.frames) - 2)
        return self.frames[:cut], self.frames[cut:]

    def until(self, after_chunks: int | None) -> tuple[Frame, ...]:
        """Return the frames before such a split (of a plain body: its first half too), never none."""
        kept, rest = self.split_at(after_chunks)
        if not self.events:
            return (*kept, dataclasses.replace(rest[0], data=rest[0].data[: len(rest[0].data) // 2]))
        return kept or (Frame(0, b""),)
