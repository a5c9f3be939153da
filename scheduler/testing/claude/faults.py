"""Which request is hit by which fault. What a fault does is in `effects`."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scheduler.testing.claude.damage import EFFECTS_DURING
from scheduler.testing.claude.effects import EFFECTS_BEFORE, Effect, Overloaded
from scheduler.testing.claude.loading import ConfigError, build, convert, require

ROUTES = (
    "messages", "batches.create", "batches.retrieve", "batches.results", "batches.cancel", "batches.request",
)  # fmt: skip
EFFECTS = {effect.kind: effect for effect in (*EFFECTS_BEFORE, *EFFECTS_DURING)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which requests a fault hits: every condition given must hold.

    `model` is the exact name and `tenant` what the tenant header says. The window `after_s` to `until_s` is
    in simulated seconds since the start or the last reset. Among the requests that pass these, `nth` is the
    n-th one, `every` each n-th one, and `probability` is drawn from the seed and the request's number (of a
    request of a batch: the batch's number and its place there).

    `route`: ``"messages"``, or one of the calls about batches: ``"batches.create"``, ``"batches.retrieve"``,
    ``"batches.results"`` or ``"batches.cancel"``, which know no `model` and which only effects before an
    answer hit. ``"batches.request"`` is each single request of a batch: the status of the effect errors it.
    """

    model: str | None = None
    tenant: str | None = None
    after_s: float = 0.0
    until_s: float | None = None
    nth: int | None = None
    every: int | None = None
    probability: float = 1.0
    route: str = "messages"

    def __post_init__(self) -> None:
        """Refuse counts below one, probabilities outside 0 to 1 and routes that there are not."""
        require(self.route in ROUTES, "match.route", self.route, f"must be one of {', '.join(ROUTES)}")
        require(self.nth is None or self.nth >= 1, "match.nth", self.nth, "must be at least 1")
        require(self.every is None or self.every >= 1, "match.every", self.every, "must be at least 1")
        require(0 <= self.probability <= 1, "match.probability", self.probability, "must be from 0 to 1")
        require(self.after_s >= 0, "match.after_s", self.after_s, "must not be negative")

    @classmethod
    def from_mapping(cls, values: object, *, where: str = "match") -> Match:
        """Build from a JSON or TOML table; raises `ConfigError`."""
        return build(cls, values, where)

    def covers(self, model: str, tenant: str | None, at_s: float, route: str = "messages") -> bool:
        """Whether a request passes the conditions that do not count requests."""
        return (
            self.route == route
            and (self.model is None or self.model == model)
            and (self.tenant is None or self.tenant == tenant)
            and self.after_s <= at_s
            and (self.until_s is None or at_s < self.until_s)
        )

    def picks(self, count: int) -> bool:
        """Whether the `count`-th covered request is one of those meant."""
        return (self.nth is None or count == self.nth) and (self.every is None or count % self.every == 0)


@dataclass(frozen=True, slots=True)
class Fault:
    """An effect, the requests it hits (`POST /v1/messages` unless told otherwise), how often at most."""

    effect: Effect
    match: Match = Match()
    times: int | None = None

    def __post_init__(self) -> None:
        """Refuse a count below one."""
        require(self.times is None or self.times >= 1, "fault.times", self.times, "must be at least 1")

    @property
    def kind(self) -> str:
        """The effect's name in configuration files and in the oracle."""
        return self.effect.kind

    @classmethod
    def overload_episode(cls, start_s: float, length_s: float, probability: float = 1.0) -> Fault:
        """529 with a probability, from `start_s` on for `length_s` simulated seconds."""
        return cls(Overloaded(), Match(after_s=start_s, until_s=start_s + length_s, probability=probability))

    @classmethod
    def from_mapping(cls, values: object, *, where: str = "fault") -> Fault:
        """Build from a table of `kind`, the effect's own fields, `match`, `times`; raises `ConfigError`."""
        if not isinstance(values, Mapping) or values.get("kind") not in EFFECTS:
            kind = values.get("kind") if isinstance(values, Mapping) else values
            raise ConfigError(f"{where}.kind: expected one of {', '.join(sorted(EFFECTS))}, got {kind!r}")
        own = {name: value for name, value in values.items() if name not in {"kind", "match", "times"}}
        return cls(
            build(EFFECTS[values["kind"]], own, where),
            Match.from_mapping(values.get("match", {}), where=f"{where}.match"),
            convert(values.get("times"), int | None, f"{where}.times"),
        )

    def to_mapping(self) -> dict[str, Any]:
        """Return the table that `from_mapping` reads, for the control plane."""
        return {"kind": self.kind, **asdict(self.effect), "match": asdict(self.match), "times": self.times}


class FaultDeck:
    """The faults in force and their counts. At most one hits a request: the first that matches."""

    def __init__(self, faults: tuple[Fault, ...], seed: int) -> None:
        """Start every count at zero."""
        self.faults = faults
        self._seed = seed
        self._covered = [0] * len(faults)
        self._hits = [0] * len(faults)

    def add(self, faults: tuple[Fault, ...]) -> None:
        """Put more faults behind those in force, whose counts go on."""
        self.faults += faults
        self._covered += [0] * len(faults)
        self._hits += [0] * len(faults)

    def choose(
        self, number: int | str, model: str, tenant: str | None, at_s: float, route: str = "messages"
    ) -> Fault | None:
        """Return the fault that hits the request with this number, if any."""
        chosen = None
        for index, fault in enumerate(self.faults):
            if not fault.match.covers(model, tenant, at_s, route):
                continue
            # Every fault counts every request, also one that an earlier fault takes: `nth` means the n-th
            # request.
            self._covered[index] += 1
            if chosen is None and self._hit(index, fault, number):
                self._hits[index] += 1
                chosen = fault
        return chosen

    def _hit(self, index: int, fault: Fault, number: int | str) -> bool:
        if fault.times is not None and self._hits[index] >= fault.times:
            return False
        if not fault.match.picks(self._covered[index]):
            return False
        if fault.match.probability >= 1:
            return True
        draw = random.Random(f"{self._seed}/{number}/fault/{index}").random()
        return draw < fault.match.probability
