"""Configuration of tenants: their quotas by name and one for all others, with a version, from a TOML text."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scheduler.core.quota import DIMENSIONS, WORD, Quota, Rate

MAX_NAME = 512
"""Characters in a tenant's name."""

RATE = ("permits", "per", "burst")
QUOTA = (*DIMENSIONS, "concurrency", "weight")


@dataclass(frozen=True, slots=True)
class Configuration:
    """Quotas of `tenants` by name, and the `default` for others; None leaves those to `quotas=`.

    `version` is 1 or more and grows with every change: an older one never overrides a newer one.
    """

    version: int
    tenants: Mapping[str, Quota] = field(default_factory=dict)
    default: Quota | None = None

    def __post_init__(self) -> None:
        if isinstance(self.version, bool) or not isinstance(self.version, int):
            raise TypeError(f"version: must be a whole number, got {self.version!r}")
        if not 0 < self.version < WORD:
            raise ValueError(f"version: must be at least 1 and below {WORD}, got {self.version!r}")
        for name in self.tenants:
            if not 0 < len(name) <= MAX_NAME or "\0" in name:
                raise ValueError(
                    f"tenants: a name must have 1 to {MAX_NAME} characters and no NUL, got {name[:40]!r}"
                )


class Applied(NamedTuple):
    """The version that counts now, and how many tenants that were known have another quota than before."""

    version: int
    changed: int


def read(text: str) -> Configuration:
    """Read a configuration. Raises ValueError that names the key and the value.

    ``version``, a table ``[default]`` and tables ``[tenants.NAME]`` with the fields of a `Quota`; a rate is
    ``{permits, per, burst}``, of which `per` (seconds) and `burst` may be left out.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"is no TOML: {error}") from None
    _only("", found, ("version", "default", "tenants"))
    if "version" not in found:
        raise ValueError("version: is missing; it is a whole number that grows with every change")
    default = _quota("default", found["default"]) if "default" in found else None
    tenants = _table("tenants", found.get("tenants", {}))
    quotas = {name: _quota(f"tenants.{name}", value) for name, value in tenants.items()}
    try:
        return Configuration(found["version"], quotas, default)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _table(path: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be a table, got {value!r}")
    return value


def _only(path: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name, value in table.items():
        if name not in known:
            raise ValueError(
                f"{path + '.' if path else ''}{name}: is not known, only {', '.join(known)}; got {value!r}"
            )


def _quota(path: str, value: object) -> Quota:
    table = _table(path, value)
    _only(path, table, QUOTA)
    fields: dict[str, Any] = {
        name: _rate(f"{path}.{name}", given) if name in DIMENSIONS else given for name, given in table.items()
    }
    try:
        return Quota(fields.pop("requests", None), **fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}.{error}") from None


def _rate(path: str, value: object) -> Rate:
    table = _table(path, value)
    _only(path, table, RATE)
    if "permits" not in table:
        raise ValueError(f"{path}.permits: is missing, got {value!r}")
    try:
        return Rate(**table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}.{error}") from None
