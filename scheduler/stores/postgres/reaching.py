"""How far the lines were loaded over which a claim decides, and what is declared for those that are late."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from asyncpg import Record

from scheduler.core.line import NEVER
from scheduler.core.overload import rank
from scheduler.core.policy import Overload
from scheduler.core.quota import NS
from scheduler.core.reach import Reach
from scheduler.core.stage import Name
from scheduler.core.stored import StoredJob

Row = Record | Mapping[str, Any]


def read_overload(row: Row) -> Overload | None:
    """What is declared for lines that are late, if anything is."""
    if row["target"] is None:
        return None
    target: Any = Fraction(row["target"], NS)
    return Overload(target, "newest" if row["newest"] else "deadline")


def reaches(
    found: Iterable[tuple[Row, StoredJob]], each: int, beyond: int, overload: Overload | None, clock: int
) -> dict[Name, Reach]:
    """Of the lines that go on behind their first jobs, how far they were loaded.

    `each`: how many of these are loaded at most, and `beyond`, of those by whom late lines go, and which are
    marked as `best`. `clock`: when that was. It is watched whether any of them are overtaken.
    """
    first: dict[Name, list[StoredJob]] = defaultdict(list)
    best: dict[Name, list[StoredJob]] = defaultdict(list)
    for row, job in found:
        job.watched = overload is not None
        if job.holder is None and row["place"] is not None:
            (best if row["best"] else first)[job.tenant, job.gate].append(job)
    long = {name: line for name, line in first.items() if len(line) >= each}
    known = {name: _reach(line, best[name], beyond, overload, clock) for name, line in long.items()}
    return {name: reach for name, reach in known.items() if reach is not None}


def _reach(
    first: Sequence[StoredJob], best: Sequence[StoredJob], beyond: int, overload: Overload | None, clock: int
) -> Reach | None:
    """How far a line was loaded that goes on behind its first jobs; None if that is all of it."""
    last = max(job.key for job in first)
    if overload is None or not any(clock - job.arrival > overload.target_ns for job in first):
        return Reach(last)
    if len(best) >= beyond:
        return Reach(last, max(rank(job, overload) for job in best))
    if overload.order == "newest":
        return None
    return Reach(last, (NEVER, last))  # all that have a deadline
