"""`POST /v1/messages` and its free sister `count_tokens`: check, decide, answer."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from scheduler.testing.claude.delivery import deliver
from scheduler.testing.claude.errors import ApiError
from scheduler.testing.claude.faults import Fault
from scheduler.testing.claude.http import Exchange, Request
from scheduler.testing.claude.limits import Limiter, Refusal
from scheduler.testing.claude.models import COUNT_TOKENS_CLASS, model_class
from scheduler.testing.claude.oracle import Attempt
from scheduler.testing.claude.prompt import Prompt, measure
from scheduler.testing.claude.replies import compose
from scheduler.testing.claude.simulation import Simulation
from scheduler.testing.claude.sse import Answer, as_body, as_events

VERSION_WITHOUT_SAMPLING = "2026-10-21"
SAMPLING_FIELDS = ("temperature", "top_p", "top_k")
# How many running requests, in capacities, are too many.
OVERLOAD_FACTOR = 2


async def create_message(simulation: Simulation, exchange: Exchange, attempt: Attempt) -> None:
    """Answer a request for a message, or raise `ApiError`."""
    # A reset replaces the oracle, and must not be given what began before it.
    oracle = simulation.oracle
    body = parse_object(exchange.request)
    model, prompt = _checked(simulation, exchange.request, attempt, body)
    require_max_tokens(body)
    attempt.stream = body.get("stream") is True
    fault = _fault(simulation, attempt, model)
    if fault is not None:
        await fault.effect.delay(exchange, simulation.time)
        if fault.effect.drop is not None:
            attempt.decision, attempt.reason = "fault", fault.kind
            exchange.end(fault.effect.drop)
            return
        _raise_refusal(simulation, attempt, fault)
    _require_capacity(simulation, attempt)
    limiter = simulation.limiter(attempt.credential or "", attempt.model_class or "")
    _require_permits(simulation, attempt, limiter, prompt.tokens)
    answer = _answer(simulation, attempt, body, prompt)
    draw = random.Random(prompt.digest + b"chunks")
    delivery = as_events(answer, simulation.config.latency, draw) if attempt.stream else as_body(answer)
    if fault is not None:
        delivery = fault.effect.rewrite(delivery)
    oracle.admit(attempt)
    try:
        await deliver(simulation, exchange, attempt, delivery, limiter)
    finally:
        oracle.release()
        now_ns = simulation.now_ns()
        counted = attempt.input_tokens + attempt.cache_creation_input_tokens
        limiter.correct_input(now_ns, prompt.tokens, counted)


async def count_tokens(simulation: Simulation, exchange: Exchange, attempt: Attempt) -> None:
    """Answer how many input tokens a request would have, or raise `ApiError`."""
    body = parse_object(exchange.request)
    _, prompt = _checked(simulation, exchange.request, attempt, body)
    limiter = simulation.limiter(attempt.credential or "", COUNT_TOKENS_CLASS)
    _require_permits(simulation, attempt, limiter, 0)
    attempt.decision = "other"
    await answer_json(simulation, exchange, attempt, {"input_tokens": prompt.tokens})


async def answer_json(simulation: Simulation, exchange: Exchange, attempt: Attempt, value: object) -> None:
    """Answer 200 with JSON."""
    attempt.status = 200
    headers = simulation.common_headers(attempt.request_id, "application/json")
    await exchange.answer(200, headers, json.dumps(value).encode())


def parse_object(request: Request) -> dict[str, Any]:
    """Return the body, which must be a JSON object."""
    if request.oversize:
        raise ApiError(413, "Request exceeds the maximum size")
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "The request body is not valid JSON") from error
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be an object")
    return body


def version_of(request: Request) -> str:
    """Return the version of the API that a request asks for, empty for none."""
    return request.headers.get("anthropic-version", "")


def require_version(body: dict[str, Any], version: str) -> None:
    """Raise `ApiError` for fields that a version of the API does not know any more."""
    if version == VERSION_WITHOUT_SAMPLING:
        for name in SAMPLING_FIELDS:
            if name in body:
                raise ApiError(400, f"{name}: is not supported in this version")


def require_max_tokens(body: dict[str, Any]) -> None:
    """Raise `ApiError` unless `max_tokens` is a whole number above zero."""
    if "max_tokens" not in body:
        raise ApiError(400, "max_tokens: Field required")
    if type(body["max_tokens"]) is not int or body["max_tokens"] < 1:
        raise ApiError(400, "max_tokens: must be a whole number of at least 1")


def require_messages(body: dict[str, Any]) -> None:
    """Raise `ApiError` unless there are messages that can be read."""
    messages = body.get("messages")
    if messages is None:
        raise ApiError(400, "messages: Field required")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages: at least one message is required")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in {"user", "assistant", "system"}:
            raise ApiError(400, f"messages.{index}.role: Input should be 'user', 'assistant' or 'system'")
        if not isinstance(message.get("content"), str | list):
            raise ApiError(400, f"messages.{index}.content: Input should be a string or a list of blocks")


def _checked(
    simulation: Simulation, request: Request, attempt: Attempt, body: dict[str, Any]
) -> tuple[str, Prompt]:
    """Check what both routes need, and note it in the attempt."""
    model = body.get("model")
    if not isinstance(model, str):
        raise ApiError(400, "model: Field required")
    attempt.model = model
    attempt.model_class = model_class(simulation.config.models, model)
    if attempt.model_class is None:
        raise ApiError(404, f"model: {model}")
    require_messages(body)
    require_version(body, version_of(request))
    return model, measure(body, simulation.seed)


def _fault(simulation: Simulation, attempt: Attempt, model: str) -> Fault | None:
    at_s = simulation.time.simulated_ns(attempt.arrival_ns) / 1e9
    fault = simulation.faults.choose(attempt.number, model, attempt.tenant, at_s)
    if fault is not None:
        attempt.fault = fault.kind
    return fault


def _raise_refusal(simulation: Simulation, attempt: Attempt, fault: Fault) -> None:
    """Raise the error that a fault puts in place of the answer, if it does."""
    error = fault.effect.refusal(simulation.time)
    if error is None:
        return
    if error.status == 429:
        limiter = simulation.limiter(attempt.credential or "", attempt.model_class or "")
        error.headers += simulation.rate_headers(limiter)
    attempt.decision = "fault"
    raise error


def _require_capacity(simulation: Simulation, attempt: Attempt) -> None:
    capacity = simulation.config.latency.capacity
    if capacity is not None and simulation.oracle.in_flight >= OVERLOAD_FACTOR * capacity:
        attempt.decision = "overloaded"
        raise ApiError(529, "Overloaded")


def _require_permits(simulation: Simulation, attempt: Attempt, limiter: Limiter, estimate: int) -> None:
    """Charge a request, or raise the 429 that names the limit."""
    refusal = limiter.admit(simulation.now_ns(), estimate)
    if refusal is not None:
        raise _rate_limited(simulation, attempt, limiter, refusal)


def _rate_limited(simulation: Simulation, attempt: Attempt, limiter: Limiter, refusal: Refusal) -> ApiError:
    wait_s = simulation.time.real_s(refusal.wait_ns)
    attempt.decision, attempt.retry_after_s = "refused", wait_s
    headers = [("retry-after", str(max(1, math.ceil(wait_s))))]
    if limiter.limits.retry_after_ms:
        headers.append(("retry-after-ms", str(max(1, math.ceil(wait_s * 1000)))))
    message = (
        f"This request would exceed your organization's rate limit of {refusal.limit:,} "
        f"{refusal.name.replace('-', ' ')} per minute (org: {simulation.config.organization_id}, "
        f"model: {attempt.model}). The response headers show your current usage."
    )
    headers += simulation.rate_headers(limiter)
    return ApiError(429, message, reason=refusal.name, headers=headers)


def _answer(simulation: Simulation, attempt: Attempt, body: dict[str, Any], prompt: Prompt) -> Answer:
    """Compose the answer and note its input tokens."""
    model = attempt.model or ""
    now_ns = simulation.now_ns()
    use = simulation.cache.use(attempt.credential or "", model, prompt, now_ns)
    attempt.input_tokens = use.fresh
    attempt.cache_creation_input_tokens = use.written
    attempt.cache_read_input_tokens = use.read
    script = simulation.scripts.choose(model, prompt)
    reply = compose(simulation.config, body, prompt, script, random.Random(prompt.digest))
    message_id = simulation.identifier("msg_", attempt.number)
    return Answer(attempt.request_id, message_id, model, reply, use)
