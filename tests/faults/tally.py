"""What was killed where, and with what in flight, by what the database witnessed.

A *grant is in flight* from the moment at which it is committed that a job or caller is running until the
moment at which it is committed that it is not. Of a kill, two numbers are told:

- `held`: whether the process that died held such a grant itself at the instant of its death;
- `running`: whether anybody did.

A point counts by the first where the process can hold a grant (workers and callers), by the second where it
never does (those who submit and who forget).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.faults.points import HOLDERS, POINTS

ENOUGH = 20
"""Kills with a grant in flight that every point must have had in a long session."""

LONG = 1200
"""Kills from which on a session is long. A shorter one need not reach every point."""


class Kill(NamedTuple):
    """A process that died, where, and when (nanoseconds of the wall clock)."""

    process: str
    point: str
    at: int


class Flight(NamedTuple):
    """A grant in flight, and when."""

    process: str
    began: int
    ended: float


def flights(events: Iterable[dict[str, Any]]) -> Iterator[Flight]:
    """All grants that the database witnessed."""
    under_way: dict[int, dict[str, Any]] = {}
    for event in events:
        granted = under_way.pop(event["job"], None)
        if granted is not None:
            yield Flight(granted["worker"], granted["at"], event["at"])
        if event["what"] in ("granted", "taken"):
            under_way[event["job"]] = event
    for granted in under_way.values():
        yield Flight(granted["worker"], granted["at"], float("inf"))


@dataclass
class Tally:
    """What happened in all rounds."""

    kills: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    """With a grant in flight in rounds that are not played again: see `hits`."""

    @property
    def killed(self) -> int:
        return self.kills.total()

    def add(self, kills: Sequence[Kill], events: Sequence[dict[str, Any]]) -> None:
        """Count the kills of a round."""
        found = list(flights(events))
        for kill in kills:
            then = [flight for flight in found if flight.began <= kill.at < flight.ended]
            self.kills[kill.point] += 1
            self.held[kill.point] += any(flight.process == kill.process for flight in then)
            self.running[kill.point] += bool(then)

    def in_flight(self, point: str) -> int:
        """Kills at a point with a grant in flight, by what that means there."""
        return self.before[point] + (self.held if point in HOLDERS else self.running)[point]

    @property
    def hits(self) -> str:
        """How often each point was hit, as `--hits` takes it."""
        return ",".join(str(self.in_flight(point)) for point in POINTS)

    def too_few(self) -> list[str]:
        """Points that a long session should have hit more often."""
        return [point for point in POINTS if self.in_flight(point) < ENOUGH] if self.killed >= LONG else []

    def lines(self) -> list[str]:
        """A histogram: kills at each point, and how many of them with a grant in flight."""
        rows = [f"{'point':<16} {'kills':>6} {'held':>6} {'running':>8}  with a grant in flight"]
        for point in POINTS:
            numbers = f"{self.kills[point]:>6} {self.held[point]:>6} {self.running[point]:>8}"
            rows.append(f"{point:<16} {numbers}  {self.in_flight(point):>6}")
        numbers = f"{self.killed:>6} {self.held.total():>6} {self.running.total():>8}"
        rows.append(f"{'all':<16} {numbers}  {sum(map(self.in_flight, POINTS)):>6}")
        return rows + [f"{what}: {n}" for what, n in sorted(self.others.items())]
