"""Configuration from a TOML text: tenants and their tiers, how long they wait, and the gates they share.

    version = 1

    [tiers.free]
    requests = { permits = 2, burst = 5 }
    max_wait = 60
    ladder = [{ after = 10, model = "claude-haiku-4-5" }, { after = 30, max_tokens = 256 }]

    [default]
    tier = "free"

    [tenants.acme]
    tier = "free"
    weight = 5

    [gates."claude-haiku-4-5"]
    requests = { permits = 1000, per = 60, burst = 50 }
    concurrency = 64
    ceiling = { requests = { permits = 5000, per = 60 } }

What a tenant says itself goes before what its tier says. If neither says anything of a quota, the tenant has
that of `default`, and so it is with the policy.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from scheduler.core.policy import Policy, Rung
from scheduler.core.quota import DIMENSIONS, WORD, Quota, Rate, plain_text
from scheduler.core.signals import Upstream

T = TypeVar("T")

MAX_NAME = 512
"""Characters in a tenant's name."""

RATE = ("permits", "per", "burst")
QUOTA = (*DIMENSIONS, "concurrency", "weight")
POLICY = ("max_wait", "max_queue", "ladder", "dark")
RUNG = ("after", "model", "gate", "max_tokens", "defer")
TENANT = ("tier", *QUOTA, *POLICY)
GATE = (*QUOTA, "ceiling", "spend_probe")


@dataclass(frozen=True, slots=True)
class Configuration:
    """Quotas and policies of `tenants` by name, those of all others (`default`), and gates by name.

    A `default` of None leaves others to whoever asks. `version` is 1 or more and grows with every change: an
    older one never overrides a newer one where it is applied to a store.
    """

    version: int
    tenants: Mapping[str, Quota] = field(default_factory=dict)
    default: Quota | None = None
    policies: Mapping[str, Policy] = field(default_factory=dict)
    default_policy: Policy | None = None
    gates: Mapping[str, Upstream] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.version, bool) or not isinstance(self.version, int):
            raise TypeError(f"version: must be a whole number, got {self.version!r}")
        if not 0 < self.version < WORD:
            raise ValueError(f"version: must be at least 1 and below {WORD}, got {self.version!r}")
        _check_names([*self.tenants, *self.policies])

    def quota(self, tenant: str) -> Quota:
        """A tenant's quota: ``Scheduler(quotas=configuration.quota)``. No limits, if nothing is said."""
        return self.tenants.get(tenant) or self.default or Quota()

    def policy(self, tenant: str) -> Policy:
        """A tenant's policy: ``Scheduler(policy=configuration.policy)``. The usual one if nothing is said."""
        return self.policies.get(tenant) or self.default_policy or Policy()


class Applied(NamedTuple):
    """The version that counts now, and how many tenants that were known have another quota than before."""

    version: int
    changed: int


def read(text: str) -> Configuration:
    """Read a configuration. Raises ValueError that names the key and the value.

    ``version``; a table ``[default]`` and tables ``[tenants.NAME]`` with the fields of a `Quota` and of a
    `Policy`, and ``tier``, one of the tables ``[tiers.NAME]`` with the same fields; tables ``[gates.NAME]``
    with the fields of a `Quota`, ``ceiling`` and ``spend_probe``. A rate is ``{permits, per, burst}``, of
    which `per` (seconds) and `burst` may be left out.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"is no TOML: {error}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    _only("", found, ("version", "default", "tenants", "tiers", "gates"))
    if "version" not in found:
        raise ValueError("version: is missing; it is a whole number that grows with every change")
    tiers = {name: _table(f"tiers.{name}", t) for name, t in _table("tiers", found.get("tiers", {})).items()}
    for name, tier in tiers.items():
        _read_tenant(f"tiers.{name}", tier, {})
    quota, policy = None, None
    if "default" in found:
        quota, policy = _read_tenant("default", found["default"], tiers)
    tenants = {
        name: _read_tenant(f"tenants.{name}", value, tiers)
        for name, value in _table("tenants", found.get("tenants", {})).items()
    }
    _check_names(tenants)
    gates = {
        name: _gate(f"gates.{name}", value) for name, value in _table("gates", found.get("gates", {})).items()
    }
    try:
        return Configuration(
            found["version"],
            {name: quota for name, (quota, _) in tenants.items() if quota is not None},
            quota,
            {name: policy for name, (_, policy) in tenants.items() if policy is not None},
            policy,
            gates,
        )
    except TypeError as error:
        raise ValueError(str(error)) from None


def _check_names(tenants: Iterable[str]) -> None:
    for name in tenants:
        if not 0 < len(name) <= MAX_NAME:
            raise ValueError(
                f"tenants: a name must have 1 to {MAX_NAME} characters and no NUL, got {name[:40]!r}"
            )
        plain_text("tenants: a name", name)


def _read_tenant(path: str, value: object, tiers: Mapping[str, Any]) -> tuple[Quota | None, Policy | None]:
    """The quota of a table and its policy, each if it says anything of one."""
    table = dict(_table(path, value))
    _only(path, table, TENANT)
    if "tier" in table:
        tier = table.pop("tier")
        if not isinstance(tier, str) or tier not in tiers:
            raise ValueError(f"{path}.tier: must be one of {sorted(tiers)}, got {tier!r}")
        table = {**tiers[tier], **table}
    wishes = {name: table.pop(name) for name in POLICY if name in table}
    return _quota(path, table) if table else None, _policy(path, wishes) if wishes else None


def _policy(path: str, table: dict[str, Any]) -> Policy:
    if "ladder" in table:
        rungs = table["ladder"]
        if not isinstance(rungs, list):
            raise ValueError(f"{path}.ladder: must be an array of tables, got {rungs!r}")
        table["ladder"] = [_rung(f"{path}.ladder[{index}]", rung) for index, rung in enumerate(rungs)]
    return _made(path, Policy, **table)


def _rung(path: str, value: object) -> Rung:
    return _made(path, Rung, **_fields(path, value, RUNG, "after"))


def _gate(path: str, value: object) -> Upstream:
    table = dict(_table(path, value))
    _only(path, table, GATE)
    options = {name: table.pop(name) for name in ("ceiling", "spend_probe") if name in table}
    if "ceiling" in options:
        options["ceiling"] = _quota(f"{path}.ceiling", options["ceiling"])
    return _made(path, Upstream, quota=_quota(path, table), **options)


def _made(path: str, kind: Callable[..., T], **fields: Any) -> T:
    """Make a value of its fields; what is wrong with one is told with the path to it."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}.{error}") from None


def _fields(path: str, value: object, known: tuple[str, ...], needed: str) -> dict[str, Any]:
    """The fields of a small table, none of which is unknown, and of which one must be there."""
    table = _table(path, value)
    _only(path, table, known)
    if needed not in table:
        raise ValueError(f"{path}.{needed}: is missing, got {value!r}")
    return table


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
    return _made(path, Quota, **fields)


def _rate(path: str, value: object) -> Rate:
    return _made(path, Rate, **_fields(path, value, RATE, "permits"))
