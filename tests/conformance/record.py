"""What one side did with a script, and whether two sides did the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from scheduler.core.quota import Quota
from tests.core.play import Op

Answer = tuple[object, ...]
Quotas = Mapping[str, Quota]


@dataclass
class Record:
    """What one side did. Times are nanoseconds after the start of the script."""

    answers: list[Answer] = field(default_factory=list)
    """Of each offer: accepted with the promised wait, or refused with reason and retry_after, or never."""
    positions: list[int | None] = field(default_factory=list)
    """Of each accepted offer; None where the sides count differently (jobs outside of the line)."""
    grants: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    """Per tenant: (job, slot), in the order in which they were granted."""
    ends: dict[int, str] = field(default_factory=dict)
    """Of each job that waited in vain: why."""
    looks: list[int | None] = field(default_factory=list)
    """Of each look at a job that stood in its line: when it was expected to start. None at any other."""
    served: dict[int, tuple[object, ...]] = field(default_factory=dict)
    """Of each accepted job at a shared gate: the gate, rungs taken, model and most tokens."""
    overtaken: set[int] = field(default_factory=set)
    """Jobs of one try that started late, and whose line had gone by another order meanwhile. While there is
    no line, nothing is known of it in memory."""

    def sort_ties(self) -> None:
        """Forget in which order those were granted that have the same slot."""
        self.grants = {name: sorted(grants, key=_by_slot) for name, grants in self.grants.items()}


def _by_slot(grant: tuple[int, int]) -> tuple[int, int]:
    return grant[::-1]


def spelled(op: Op) -> str:
    """An operation as a script would spell it, without what is as always."""
    usual = Op._field_defaults
    named = (f"{name}={value!r}" for name, value in op._asdict().items() if value != usual.get(name))
    return f"Op({', '.join(named)})".replace("kind=", "")


def compare(expected: Record, found: Record, quotas: Mapping[str, object], ops: Sequence[Op]) -> None:
    """Both sides did the same. What fails prints the script that replays it."""
    both = zip(expected.positions, found.positions, strict=True)
    positions = [None if want is None else here for want, here in both]
    answers = [
        (*here[:-1], None) if want[-1] is None else here
        for want, here in zip(expected.answers, found.answers, strict=True)
    ]
    sides = {
        "answers": (expected.answers, answers),
        "positions": (expected.positions, positions),
        "grants": (dict(expected.grants), dict(found.grants)),
        "looks": (expected.looks, found.looks),
        "ends": (expected.ends, found.ends),
        "served": (expected.served, found.served),
        "overtaken": (expected.overtaken, found.overtaken),
    }
    different = [f"{name}\n  {a}\n  {b}" for name, (a, b) in sides.items() if a != b]
    if different:
        script = "\n".join(f"  {spelled(op)}," for op in ops)
        text = ["in memory, and here:", *different, f"quotas: {quotas}", "script:", script]
        pytest.fail("\n".join(text), pytrace=False)
