"""The Message Batches API through the Anthropic SDK: single calls, whose failures are `UpstreamError`.

As in `claude`, errors are raised without cause and context: the SDK's exceptions carry requests, and so
prompts. Nothing is repeated here.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from anthropic.types.messages import MessageBatch

from scheduler.errors import UpstreamError
from scheduler.upstreams.claude import Client, Message, is_complete
from scheduler.upstreams.failures import (
    RETRY_AFTER_MAX_S,
    TRIES_MAX,
    Kind,
    backoff_after,
    errored,
    failure,
    is_refusal,
    outcome,
)

__all__ = [
    "BYTES_MAX",
    "ENVELOPE_BYTES",
    "REQUESTS_MAX",
    "RETRY_AFTER_MAX_S",
    "TRIES_MAX",
    "Kind",
    "Message",
    "backoff_after",
    "cancel",
    "create",
    "custom_id",
    "has_ended",
    "is_refusal",
    "outcome",
    "results",
    "written",
]

REQUESTS_MAX = 100_000
"""Requests in one batch, by the API's limit."""

BYTES_MAX = 256_000_000
"""Bytes of one batch, by the API's limit."""

ENVELOPE_BYTES = 128
"""What a request of a batch has around its parameters, at most: its custom id and some punctuation."""

PATH = "/v1/messages/batches"

CONTROL_S = 10.0
"""Seconds for a call that asks for a batch or cancels it: neither it nor its answer has any size."""

CUSTOM_ID_MAX = 64
NOT_IN_CUSTOM_ID = re.compile(r"[^a-zA-Z0-9_-]", re.ASCII)


def custom_id(number: int, name: str) -> str:
    """A custom id as the API demands it, unique by its number, and with as much of a name as fits."""
    return NOT_IN_CUSTOM_ID.sub("_", f"{number}-{name}")[:CUSTOM_ID_MAX]


def written(request: Mapping[str, Any]) -> bytes:
    """The parameters of a request as they go in a batch; TypeError or ValueError for what is no JSON.

    Each is written when it comes. The SDK would write all of a batch at once, and nothing else would run
    meanwhile; and what cannot be written would take all others along.
    """
    text = json.dumps(request, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass
    # Raised out here: that exception carries the text.
    raise ValueError("request: must be valid Unicode")


async def create(client: Client, requests: Iterable[tuple[str, bytes]]) -> str:
    """Send requests, each with its custom id and as it was `written`, as one batch, and return its id."""
    listed = b",".join(b'{"custom_id":"%b","params":%b}' % (name.encode(), body) for name, body in requests)
    try:
        batch: Any = await client.post(
            PATH,
            content=b'{"requests":[%b]}' % listed,
            cast_to=MessageBatch,
            options={"headers": {"content-type": "application/json"}},
        )
        if isinstance(batch.id, str) and batch.id:  # the SDK does not check shapes
            return str(batch.id)
        problem = UpstreamError(Kind.MALFORMED, 200)
    except Exception as error:  # noqa: BLE001 - as for reading a stream: anything can come out of the SDK
        problem = failure(error)
    raise problem


async def has_ended(client: Client, batch_id: str) -> bool:
    """Whether there are results of a batch."""
    try:
        async with asyncio.timeout(CONTROL_S):
            batch: Any = await client.messages.batches.retrieve(batch_id)
        if isinstance(batch.processing_status, str):
            return bool(batch.processing_status == "ended")
        problem = UpstreamError(Kind.MALFORMED, 200)
    except TimeoutError:
        problem = UpstreamError(Kind.TIMEOUT)
    except Exception as error:  # noqa: BLE001 - see above
        problem = failure(error)
    raise problem


async def cancel(client: Client, batch_id: str) -> None:
    """Cancel a batch; what of it is under way may still run, and be billed."""
    try:
        async with asyncio.timeout(CONTROL_S):
            await client.messages.batches.cancel(batch_id)
    except TimeoutError:
        problem = UpstreamError(Kind.TIMEOUT)
    except Exception as error:  # noqa: BLE001 - see above
        problem = failure(error)
    else:
        return
    raise problem


async def results(client: Client, batch_id: str) -> AsyncGenerator[tuple[str, Message | UpstreamError], None]:
    """The results of a batch that has ended, as they come: custom id, and answer or what there is instead.

    Their order is not that of the requests.
    """
    problem = None
    opened = False
    try:
        stream = await client.messages.batches.results(batch_id)
        opened = True
        async with aclosing(_closing(stream)) as lines:
            async for line in lines:
                if isinstance(line.custom_id, str):
                    yield line.custom_id, _result(line)
    except Exception as error:  # noqa: BLE001 - see above
        problem = failure(error, reading=opened)
    if problem is not None:
        raise problem


async def _closing(stream: Any) -> AsyncGenerator[Any, None]:
    """The lines of a stream that is closed when they are not read to their end."""
    try:
        async for line in stream:
            yield line
    finally:
        await stream.close()


def _result(line: Any) -> Message | UpstreamError:
    """What one line of the results says. The SDK does not check shapes: anything may be missing."""
    result = getattr(line, "result", None)
    match getattr(result, "type", None):
        case "succeeded":
            message = getattr(result, "message", None)
            if isinstance(message, Message) and is_complete(message):
                return message
        case "errored":
            told = getattr(getattr(result, "error", None), "error", None)
            return errored(getattr(told, "type", None))
        case "expired":
            return UpstreamError(Kind.EXPIRED)
        case "canceled":
            return UpstreamError(Kind.CANCELED)
    return UpstreamError(Kind.MALFORMED, 200)
