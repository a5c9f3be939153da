"""The control plane under `/_sim/`: read and change the simulation from another process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any
from urllib.parse import parse_qs

from scheduler.testing.claude.config import ClaudeConfig
from scheduler.testing.claude.errors import ApiError, envelope
from scheduler.testing.claude.faults import Fault
from scheduler.testing.claude.http import Exchange, Request
from scheduler.testing.claude.loading import ConfigError
from scheduler.testing.claude.simulation import Simulation

PAGE_SIZE = 1_000
PAGE_SIZE_MAX = 100_000


async def answer(simulation: Simulation, exchange: Exchange) -> None:
    """Answer a request of the control plane; it leaves no trace in the oracle."""
    try:
        status, body = 200, json.dumps(_act(simulation, exchange.request)).encode()
    except ApiError as error:
        status, body = error.status, envelope(error.error_type, error.message, "")
    except ConfigError as error:
        status, body = 400, envelope("invalid_request_error", str(error), "")
    await exchange.answer(status, [("content-type", "application/json")], body)


def _act(simulation: Simulation, request: Request) -> object:
    match (request.method, request.path.removeprefix("/_sim/")):
        case ("GET", "config"):
            return simulation.config.to_mapping()
        case ("PUT" | "POST", "config"):
            config = ClaudeConfig.from_mapping(_json(request))
            simulation.configure(config.keeping_keys_of(simulation.config))
            return simulation.config.to_mapping()
        case ("GET", "faults"):
            return [fault.to_mapping() for fault in simulation.faults.faults]
        case ("POST", "faults"):
            simulation.add_faults(_faults(_json(request)))
            return [fault.to_mapping() for fault in simulation.faults.faults]
        case ("DELETE", "faults"):
            simulation.clear_faults()
            return []
        case ("GET", "requests"):
            return _requests(simulation, parse_qs(request.query))
        case ("GET", "stats"):
            statistics = simulation.oracle.statistics()
            return {**asdict(statistics), "rate_limited": statistics.rate_limited}
        case ("POST", "reset"):
            simulation.reset()
            return {}
    raise ApiError(404, "Not found")


def _json(request: Request) -> Any:
    try:
        return json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"body: not valid JSON: {error}") from error


def _faults(values: object) -> tuple[Fault, ...]:
    """Read one fault or a list of them."""
    listed = values if isinstance(values, list) else [values]
    return tuple(Fault.from_mapping(value, where=f"faults[{index}]") for index, value in enumerate(listed))


def _requests(simulation: Simulation, query: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Return the attempts with a number above `after`, at most `limit` of them."""
    after = _whole(query, "after", 0)
    limit = min(_whole(query, "limit", PAGE_SIZE), PAGE_SIZE_MAX)
    later = (attempt for attempt in simulation.oracle.attempts if attempt.number > after)
    return [attempt.to_mapping() for attempt in islice(later, limit)]


def _whole(query: Mapping[str, list[str]], name: str, default: int) -> int:
    text = query.get(name, [str(default)])[0]
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ConfigError(f"{name}: expected a whole number, got {text!r}")
    return int(text)
