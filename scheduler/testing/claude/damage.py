"""Faults that damage an answer whose head has been sent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from scheduler.testing.claude.effects import Effect, require_duration
from scheduler.testing.claude.errors import envelope
from scheduler.testing.claude.frames import PING, Delivery, Frame
from scheduler.testing.claude.loading import require

KeepAlive = Literal["ping", "comment", "space"]
KEEP_ALIVE_BYTES = {"ping": PING, "comment": b": waiting\n\n", "space": b" "}
BROKEN_EVENT = b'event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, "del\n\n'


@dataclass(frozen=True, slots=True)
class _After(Effect):
    """Base of the faults that strike after some content deltas, or before `message_start` with `None`.

    A plain answer is struck in the middle of its body.
    """

    after_chunks: int | None = 1

    def __post_init__(self) -> None:
        """Refuse a negative count."""
        chunks = self.after_chunks
        require(chunks is None or chunks >= 0, "fault.after_chunks", chunks, "must not be negative")


@dataclass(frozen=True, slots=True)
class ResetMidStream(_After):
    """The connection is reset (RST) after some deltas."""

    kind: ClassVar[str] = "reset_mid_stream"

    def rewrite(self, delivery: Delivery) -> Delivery:
        """Reset after the last frame that is kept."""
        *kept, last = delivery.until(self.after_chunks)
        return delivery.with_frames((*kept, replace(last, end="reset")), same_length=True)


@dataclass(frozen=True, slots=True)
class CloseMidStream(_After):
    """The connection is closed (FIN) after some deltas, in the middle of the body."""

    kind: ClassVar[str] = "close_mid_stream"

    def rewrite(self, delivery: Delivery) -> Delivery:
        """Close after the last frame that is kept."""
        *kept, last = delivery.until(self.after_chunks)
        return delivery.with_frames((*kept, replace(last, end="close")), same_length=True)


@dataclass(frozen=True, slots=True)
class Truncate(_After):
    """The answer ends cleanly after some deltas, without `message_stop`."""

    kind: ClassVar[str] = "truncate"

    def rewrite(self, delivery: Delivery) -> Delivery:
        """Keep the first frames."""
        return delivery.with_frames(delivery.until(self.after_chunks))


@dataclass(frozen=True, slots=True)
class ErrorEvent(_After):
    """An `error` event after some deltas, then the end; a plain answer is a 200 with the error's envelope."""

    kind: ClassVar[str] = "error_event"
    type: str = "overloaded_error"
    message: str = "Overloaded"

    def rewrite(self, delivery: Delivery) -> Delivery:
        """Replace the rest by the error."""
        body = envelope(self.type, self.message, delivery.request_id)
        if not delivery.events:
            return delivery.with_frames((*delivery.frames[:-1], Frame(0, body)))
        kept, _ = delivery.split_at(self.after_chunks)
        return delivery.with_frames((*kept, Frame(0, b"event: error\ndata: " + body + b"\n\n")))


@dataclass(frozen=True, slots=True)
class MalformedJson(_After):
    """An event whose JSON is broken, after some deltas; a plain answer is half its JSON and nothing more."""

    kind: ClassVar[str] = "malformed_json"

    def rewrite(self, delivery: Delivery) -> Delivery:
        """Break one event, or the body."""
        if not delivery.events:
            return delivery.with_frames(delivery.until(None))
        kept, rest = delivery.split_at(self.after_chunks)
        return delivery.with_frames((*kept, Frame(0, BROKEN_EVENT), *rest))


@dataclass(frozen=True, slots=True)
class WrongShape(Effect):
    """200 with a JSON body that is no message, also where a stream was asked for."""

    kind: ClassVar[str] = "wrong_shape"

    def rewrite(self, delivery: Delivery) -> Delivery:
        """Replace the answer."""
        body = b'{"foo": 1}'
        return Delivery(delivery.request_id, (Frame(0, body),), events=False, length=len(body))


@dataclass(frozen=True, slots=True)
class LostLastEvent(Effect):
    """The last event is not followed by its blank line; a plain answer is left as it is."""

    kind: ClassVar[str] = "lost_last_event"

    def rewrite(self, delivery: Delivery) -> Delivery:
        """Drop the last line end."""
        if not delivery.events:
            return delivery
        *kept, last = delivery.frames
        return delivery.with_frames((*kept, replace(last, data=last.data[:-1])))


@dataclass(frozen=True, slots=True)
class Stall(_After):
    """Silence for `seconds` after some deltas; a plain answer is silent between head and body.

    The head is sent before it, whatever comes.

    With `keep_alive` (`ping` and `comment` for streams, `space` for plain answers) there is one in every
    `interval_s`.
    """

    kind: ClassVar[str] = "stall"
    seconds: float = 60.0
    keep_alive: KeepAlive | None = None
    interval_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse durations that are negative or longer than a day, and an interval of zero."""
        _After.__post_init__(self)
        require_duration("fault.seconds", self.seconds)
        require(self.interval_s >= 0.01, "fault.interval_s", self.interval_s, "must be at least 0.01")

    def rewrite(self, delivery: Delivery) -> Delivery:
        """Insert the silence."""
        kept, (first, *rest) = delivery.split_at(self.after_chunks)
        alive: list[Frame] = []
        if self.keep_alive is not None:
            data = KEEP_ALIVE_BYTES[self.keep_alive]
            alive = [Frame(0, data, self.interval_s)] * int(self.seconds / self.interval_s)
        left_s = self.seconds - self.interval_s * len(alive)
        # Even a silence of nothing sends the head first.
        return delivery.with_frames((*kept, *alive, replace(first, pause_s=max(left_s, 1e-9)), *rest))


@dataclass(frozen=True, slots=True)
class SlowLoris(Effect):
    """The body dribbles: `size` bytes in every `interval_s`."""

    kind: ClassVar[str] = "slow_loris"
    size: int = 20
    interval_s: float = 0.2

    def __post_init__(self) -> None:
        """Refuse pieces of nothing."""
        require(self.size >= 1, "fault.size", self.size, "must be at least 1")
        require_duration("fault.interval_s", self.interval_s)

    def rewrite(self, delivery: Delivery) -> Delivery:
        """Cut the body into pieces."""
        body = delivery.body
        pieces = [body[start : start + self.size] for start in range(0, len(body), self.size)]
        spent = Frame(sum(frame.tokens for frame in delivery.frames), b"")
        return delivery.with_frames((spent, *(Frame(0, piece, self.interval_s) for piece in pieces)))


@dataclass(frozen=True, slots=True)
class CutBody(Effect):
    """The connection is closed in the middle of the body, whatever it is."""

    kind: ClassVar[str] = "cut_body"

    def rewrite(self, delivery: Delivery) -> Delivery:
        """Keep half of all bytes."""
        body = delivery.body
        spent = sum(frame.tokens for frame in delivery.frames)
        return delivery.with_frames((Frame(spent, body[: len(body) // 2], end="close"),), same_length=True)


EFFECTS_DURING: tuple[type[Effect], ...] = (
    ResetMidStream, CloseMidStream, Truncate, ErrorEvent, MalformedJson, WrongShape, LostLastEvent, Stall,
    SlowLoris, CutBody,
)  # fmt: skip
