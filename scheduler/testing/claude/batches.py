"""A minimal Message Batches API: batches end by themselves after a time, and answer as single requests do.

What it does not do: end some requests of a batch before others, and keep results for 29 days only.
"""

from __future__ import annotations

import json
import math
import random
import re
from typing import Any

from scheduler.testing.claude.errors import ApiError
from scheduler.testing.claude.messages import require_max_tokens, require_messages, require_version
from scheduler.testing.claude.models import model_class
from scheduler.testing.claude.prompt import CacheUse, measure
from scheduler.testing.claude.replies import compose
from scheduler.testing.claude.simulation import Batch, Simulation
from scheduler.testing.claude.sse import Answer
from scheduler.testing.claude.timing import SECOND_NS, rfc3339

BATCH_REQUESTS_MAX = 100_000
CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)


def create(
    simulation: Simulation, credential: str, number: int, version: str, body: dict[str, Any]
) -> dict[str, Any]:
    """Take a batch in; raises `ApiError`."""
    requests = body.get("requests")
    if not isinstance(requests, list) or not 1 <= len(requests) <= BATCH_REQUESTS_MAX:
        raise ApiError(400, f"requests: from 1 to {BATCH_REQUESTS_MAX} requests are needed")
    for index, request in enumerate(requests):
        if not isinstance(request, dict) or not isinstance(request.get("params"), dict):
            raise ApiError(400, f"requests.{index}.params: Field required")
        custom_id = request.get("custom_id")
        if not isinstance(custom_id, str) or not CUSTOM_ID.fullmatch(custom_id):
            raise ApiError(400, f"requests.{index}.custom_id: String should match '^{CUSTOM_ID.pattern}$'")
    if len({request["custom_id"] for request in requests}) < len(requests):
        raise ApiError(400, "requests: every request needs a custom_id of its own")
    _make_room(simulation)
    batch_id = simulation.identifier("msgbatch_", number)
    now_ns, wall_s = simulation.now_ns(), simulation.time.wall_s()
    batch = Batch(batch_id, number, credential, version, requests, now_ns, wall_s)
    simulation.batches[batch_id] = batch
    return describe(simulation, batch)


def _make_room(simulation: Simulation) -> None:
    """Forget the oldest batch if there are as many as may be; raises `ApiError` if it has not ended."""
    if len(simulation.batches) < simulation.config.batches_max:
        return
    # All take as long, so the oldest is the first to end.
    oldest = next(iter(simulation.batches.values()))
    wait_ns = _ends_ns(simulation, oldest) - simulation.now_ns()
    if wait_ns > 0:
        retry_after = max(1, math.ceil(simulation.time.real_s(wait_ns)))
        headers = [("retry-after", str(retry_after))]
        raise ApiError(429, "There are too many batches", headers=headers)
    del simulation.batches[oldest.id]


def find(simulation: Simulation, credential: str, batch_id: str) -> Batch:
    """Return a batch of this credential; raises `ApiError`."""
    batch = simulation.batches.get(batch_id)
    if batch is None or batch.credential != credential:
        raise ApiError(404, "The batch does not exist")
    return batch


def ended(simulation: Simulation, batch: Batch) -> bool:
    """Whether a batch has had its time."""
    return simulation.now_ns() >= _ends_ns(simulation, batch)


def _ends_ns(simulation: Simulation, batch: Batch) -> int:
    return batch.created_ns + round(_lasts_s(simulation) * SECOND_NS)


def _lasts_s(simulation: Simulation) -> float:
    return min(simulation.config.batch_s, simulation.config.batch_expires_s)


def cancel(simulation: Simulation, batch: Batch) -> None:
    """Cancel a batch; one that has ended stays as it is."""
    batch.cancelled = batch.cancelled or not ended(simulation, batch)


def delete(simulation: Simulation, batch: Batch) -> None:
    """Forget a batch; raises `ApiError` before it has ended."""
    if not ended(simulation, batch):
        raise ApiError(400, "The batch has not ended: cancel it first")
    del simulation.batches[batch.id]


def describe(simulation: Simulation, batch: Batch) -> dict[str, Any]:
    """Return a batch as the API shows it."""
    over = ended(simulation, batch)
    counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    if not over:
        counts["processing"] = len(batch.requests)
    else:
        for result in results(simulation, batch):
            counts[result["result"]["type"]] += 1
    lasts_s = simulation.time.real_ns(_lasts_s(simulation)) / SECOND_NS
    expires_s = simulation.time.real_ns(simulation.config.batch_expires_s) / SECOND_NS
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if over else "canceling" if batch.cancelled else "in_progress",
        "request_counts": counts,
        "created_at": rfc3339(batch.created_wall_s),
        "expires_at": rfc3339(batch.created_wall_s + expires_s),
        "ended_at": rfc3339(batch.created_wall_s + lasts_s) if over else None,
        "cancel_initiated_at": rfc3339(batch.created_wall_s) if batch.cancelled else None,
        "archived_at": None,
        "results_url": f"/v1/messages/batches/{batch.id}/results" if over else None,
    }


def results(simulation: Simulation, batch: Batch) -> list[dict[str, Any]]:
    """Return one result per request of a batch, in an order of their own, as the real API does."""
    if batch.results is None:
        batch.results = [
            {
                "custom_id": request["custom_id"],
                "result": _result(simulation, batch, index, request["params"]),
            }
            for index, request in enumerate(batch.requests)
        ]
        simulation.draw(batch.number, "order").shuffle(batch.results)
    return batch.results


def results_lines(simulation: Simulation, batch: Batch) -> bytes:
    """Return the results as JSON lines; raises `ApiError` before the batch has ended."""
    if not ended(simulation, batch):
        raise ApiError(400, "The batch has not ended")
    return b"".join(json.dumps(result).encode() + b"\n" for result in results(simulation, batch))


def _result(simulation: Simulation, batch: Batch, index: int, params: dict[str, Any]) -> dict[str, Any]:
    if batch.cancelled:
        return {"type": "canceled"}
    if simulation.config.batch_s > simulation.config.batch_expires_s:
        return {"type": "expired"}
    try:
        _require_answerable(simulation, batch, index, params)
    except ApiError as error:
        body = {"type": "error", "error": {"type": error.error_type, "message": error.message}}
        return {"type": "errored", "error": body}
    prompt = measure(params, simulation.seed)
    script = simulation.scripts.choose(params["model"], prompt)
    reply = compose(simulation.config, params, prompt, script, random.Random(prompt.digest))
    message_id = f"msg_{batch.id}_{index}"
    answer = Answer("", message_id, params["model"], reply, CacheUse(prompt.tokens, 0, 0))
    message = answer.message(complete=True)
    message["usage"]["service_tier"] = "batch"
    return {"type": "succeeded", "message": message}


def _require_answerable(simulation: Simulation, batch: Batch, index: int, params: dict[str, Any]) -> None:
    """Raise `ApiError` for what a single request would be refused for, and for a fault that hits it."""
    require_messages(params)
    require_max_tokens(params)
    require_version(params, batch.version)
    model = str(params.get("model"))
    if model_class(simulation.config.models, model) is None:
        raise ApiError(404, f"model: {model}")
    at_s = batch.created_ns / SECOND_NS
    fault = simulation.faults.choose(f"{batch.number}/{index}", model, None, at_s, "batches.request")
    if fault is None:
        return
    simulation.oracle.count_fault(fault.kind)
    refusal = fault.effect.refusal(simulation.time)
    if refusal is not None:
        raise refusal
