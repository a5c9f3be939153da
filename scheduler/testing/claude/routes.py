"""Which request goes where, who may ask, and how an error is written."""

from __future__ import annotations

from scheduler.testing.claude import batches, control
from scheduler.testing.claude.config import ClaudeConfig
from scheduler.testing.claude.errors import ApiError, envelope
from scheduler.testing.claude.http import Exchange, Request
from scheduler.testing.claude.messages import (
    answer_json,
    count_tokens,
    create_message,
    parse_object,
    version_of,
)
from scheduler.testing.claude.models import model_class, model_info
from scheduler.testing.claude.oracle import Attempt, credential_of
from scheduler.testing.claude.simulation import Simulation

VERSIONS = ("2023-06-01", "2026-10-21")
BATCHES_PATH = "/v1/messages/batches"
BATCH_ACTIONS = {
    ("GET",): "retrieve",
    ("GET", "results"): "results",
    ("POST", "cancel"): "cancel",
    ("DELETE",): "delete",
}


def body_bytes_max(config: ClaudeConfig, method: str, path: str) -> int:
    """Return how large the body of a request may be."""
    creates_batch = method == "POST" and path.rstrip("/") == BATCHES_PATH
    return config.batch_bytes_max if creates_batch else config.body_bytes_max


async def handle(simulation: Simulation, exchange: Exchange) -> None:
    """Answer any request."""
    request = exchange.request
    if request.path.startswith("/_sim/"):
        await control.answer(simulation, exchange)
        return
    oracle, number = simulation.oracle, simulation.next_number()
    attempt = oracle.open(number, simulation.identifier("req_", number), request)
    try:
        await _route(simulation, exchange, attempt)
    except ApiError as error:
        await _answer_error(simulation, exchange, attempt, error)
    finally:
        oracle.close(attempt, exchange, simulation.time.now_ns())


async def _route(simulation: Simulation, exchange: Exchange, attempt: Attempt) -> None:
    request = exchange.request
    if request.path == "/":
        attempt.status, attempt.decision = 200, "other"
        await exchange.answer(200, simulation.common_headers(attempt.request_id, "text/plain"), b"")
        return
    if not request.path.startswith("/v1/"):
        raise ApiError(404, "Not found")
    _authorize(simulation, request)
    match (request.method, request.path):
        case ("POST", "/v1/messages"):
            await create_message(simulation, exchange, attempt)
        case ("POST", "/v1/messages/count_tokens"):
            await count_tokens(simulation, exchange, attempt)
        case (_, path) if path == BATCHES_PATH or path.startswith(BATCHES_PATH + "/"):
            await _batches(simulation, exchange, attempt)
        case ("GET", path) if path == "/v1/models" or path.startswith("/v1/models/"):
            await _models(simulation, exchange, attempt)
        case _:
            raise ApiError(404, "Not found")


def _authorize(simulation: Simulation, request: Request) -> None:
    """Raise `ApiError` for a key or a version that the API would not take."""
    _, key = credential_of(request.headers)
    known = simulation.config.api_keys
    if not key:
        raise ApiError(401, "x-api-key or authorization header is required")
    if known is not None and key not in known:
        raise ApiError(401, "invalid API key")
    version = version_of(request)
    if not version:
        raise ApiError(400, "anthropic-version: header is required")
    if version not in VERSIONS:
        raise ApiError(400, f"anthropic-version: {version!r} is not a version of this API")


async def _models(simulation: Simulation, exchange: Exchange, attempt: Attempt) -> None:
    models = simulation.config.models
    attempt.decision = "other"
    model = exchange.request.path.removeprefix("/v1/models").strip("/")
    if not model:
        listed = [model_info(name) for name in models]
        page = {"data": listed, "has_more": False, "first_id": next(iter(models), None)}
        await answer_json(
            simulation, exchange, attempt, {**page, "last_id": next(reversed(list(models)), None)}
        )
        return
    if model_class(models, model) is None:
        raise ApiError(404, f"model: {model}")
    await answer_json(simulation, exchange, attempt, model_info(model))


async def _batches(simulation: Simulation, exchange: Exchange, attempt: Attempt) -> None:
    request, credential = exchange.request, attempt.credential or ""
    attempt.decision = "other"
    tail = request.path.removeprefix(BATCHES_PATH).strip("/").split("/")
    if tail == [""] and request.method == "POST":
        if await _struck(simulation, exchange, attempt, "create"):
            return
        body = parse_object(request)
        created = batches.create(simulation, credential, attempt.number, version_of(request), body)
        await answer_json(simulation, exchange, attempt, created)
        return
    if tail == [""]:
        own = [batch for batch in simulation.batches.values() if batch.credential == credential]
        data = [batches.describe(simulation, batch) for batch in reversed(own)]
        page = {"data": data, "has_more": False, "first_id": None, "last_id": None}
        await answer_json(simulation, exchange, attempt, page)
        return
    action = BATCH_ACTIONS.get((request.method, *tail[1:]))
    batch = batches.find(simulation, credential, tail[0])
    if action is None:
        raise ApiError(404, "Not found")
    if await _struck(simulation, exchange, attempt, action):
        return
    if action == "results":
        lines = batches.results_lines(simulation, batch)
        attempt.status = 200
        headers = simulation.common_headers(attempt.request_id, "application/x-jsonl")
        await exchange.answer(200, headers, lines)
        return
    if action == "delete":
        batches.delete(simulation, batch)
        await answer_json(simulation, exchange, attempt, {"id": batch.id, "type": "message_batch_deleted"})
        return
    if action == "cancel":
        batches.cancel(simulation, batch)
    await answer_json(simulation, exchange, attempt, batches.describe(simulation, batch))


async def _struck(simulation: Simulation, exchange: Exchange, attempt: Attempt, action: str) -> bool:
    """Whether a fault has ended the exchange; raises the `ApiError` that it answers instead."""
    at_s = simulation.time.simulated_ns(attempt.arrival_ns) / 1e9
    fault = simulation.faults.choose(attempt.number, "", attempt.tenant, at_s, f"batches.{action}")
    if fault is None:
        return False
    attempt.fault = fault.kind
    await fault.effect.delay(exchange, simulation.time)
    if fault.effect.drop is not None:
        attempt.decision, attempt.reason = "fault", fault.kind
        exchange.end(fault.effect.drop)
        return True
    refusal = fault.effect.refusal(simulation.time)
    if refusal is not None:
        attempt.decision = "fault"
        raise refusal
    return False


async def _answer_error(
    simulation: Simulation, exchange: Exchange, attempt: Attempt, error: ApiError
) -> None:
    """Write an error's envelope, and note it."""
    attempt.status, attempt.reason = error.status, error.reason
    if attempt.decision in {"pending", "other"}:
        attempt.decision = "invalid"
    body = envelope(error.error_type, error.message, attempt.request_id, error.error_code)
    headers = [*simulation.common_headers(attempt.request_id, "application/json"), *error.headers]
    await exchange.answer(error.status, headers, body)
