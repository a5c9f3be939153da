"""The models that the simulated API knows, and which of them share a bucket."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

# Model → class: the models of one class share the buckets of a credential.
MODELS: Mapping[str, str] = MappingProxyType(
    {
        "claude-opus-5-5": "claude-opus-5-5",
        "claude-opus-5": "claude-opus-5",
        "claude-opus-4-8": "claude-opus-4",
        "claude-opus-4-7": "claude-opus-4",
        "claude-opus-4-6": "claude-opus-4",
        "claude-opus-4-5": "claude-opus-4",
        "claude-sonnet-5-5": "claude-sonnet-5-5",
        "claude-sonnet-5": "claude-sonnet-5",
        "claude-sonnet-4-6": "claude-sonnet-4",
        "claude-sonnet-4-5": "claude-sonnet-4",
        "claude-haiku-5-5": "claude-haiku-5-5",
        "claude-haiku-4-5": "claude-haiku-4-5",
        "claude-fable-5-2": "claude-fable-5-2",
        "claude-fable-5-1": "claude-fable-5-1",
        "claude-fable-5": "claude-fable-5",
    }
)

# Counting tokens has a limit of its own, which is configured like that of a class.
COUNT_TOKENS_CLASS = "count_tokens"

_SNAPSHOT = re.compile(r"-\d{8}$")


def model_class(models: Mapping[str, str], model: str) -> str | None:
    """Return the class of a model, also of its dated snapshots; `None` if it is unknown."""
    return models.get(model) or models.get(_SNAPSHOT.sub("", model))


def model_info(model: str) -> dict[str, object]:
    """Return a model as `/v1/models` lists it."""
    name = model.removeprefix("claude-").replace("-", " ").title()
    return {
        "type": "model",
        "id": model,
        "display_name": f"Claude {name}",
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
    }
