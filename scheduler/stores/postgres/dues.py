"""When a process without slots for jobs has to claim for its callers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from asyncpg import Record


class Blocked(NamedTuple):
    """A tenant of which something is due that is for others to take, as the last claim left it.

    Until the tenant changes, a claim without slots finds nobody to grant before `again`.
    """

    due: int | None
    as_of: int
    again: int


class Dues:
    """What the last claims of a process have left for others."""

    def __init__(self) -> None:
        self.blocked: dict[str, Blocked] = {}

    def note(self, blocked: Mapping[str, Blocked]) -> None:
        """Remember what a claim has left."""
        self.blocked.update(blocked)

    def times(self, tenants: Iterable[Record]) -> dict[str, int]:
        """When to claim from which tenants, given how those with something due stand. Forget all others."""
        times, before, self.blocked = {}, self.blocked, {}
        for row in tenants:
            known, due = before.get(row["tenant"]), row["due"]
            if known is not None and (known.due, known.as_of) == (due, row["as_of"]):
                self.blocked[row["tenant"]] = known
                due = known.again
            if due is not None:
                times[row["tenant"]] = due
        return times
