"""Target P14: what waitline must reach where the demand is all that the account allows."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.degradation.rows.ours import Waitline, WaitlineWithReserve
from benchmarks.measure import Row
from benchmarks.tables import Table

LOAD = 1.0
JUDGED = (Waitline.name, WaitlineWithReserve.name)


@dataclass(frozen=True)
class Bound:
    """One figure, its floor and its goal; `least`: more is better."""

    key: str
    quantity: str
    floor: float
    goal: float
    form: str
    least: bool = True

    def state(self, value: float | None) -> str:
        """Whether a value reaches the goal, the floor (PASS), or neither (MISS); None says nothing."""
        if value is None:
            return "not measured"
        for word, bound in (("goal", self.goal), ("PASS", self.floor)):
            if value >= bound if self.least else value <= bound:
                return word
        return "MISS"


BOUNDS = (
    Bound("answered", "answered, %", 99, 100, ".1f"),
    Bound("limited_steady", "upstream 429s after the warm-up", 0, 0, ".0f", least=False),
    Bound("use_waiting", "use of the limit while work waits, %", 97, 99, ".2f"),
    Bound("jain", "Jain's index of the backlogged", 0.98, 0.99, ".4f"),
    Bound("quiet_ratio", "quiet tenants' p99 from submit to reply ÷ alone", 1.2, 1.1, ".2f", least=False),
)


def judged(rows: dict[str, Row]) -> Table:
    """The target's table, from the rows of load 1."""
    table = [["P14, load 100 %", "floor", "goal", *(word for name in JUDGED for word in (name, ""))]]
    for bound in BOUNDS:
        sign = "≥" if bound.least else "≤"
        line = [bound.quantity, f"{sign} {bound.floor:g}", f"{sign} {bound.goal:g}"]
        for name in JUDGED:
            value = rows[name].get(bound.key)
            line += ["–" if value is None else f"{value:{bound.form}}", bound.state(value)]
        table.append(line)
    return table
