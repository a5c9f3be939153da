"""P15 over PostgreSQL: whole lives whose tenants have three buckets, against requests only.

A tenant's own buckets: a store has no gates yet.
"""

from __future__ import annotations

from benchmarks.cases.base import Case, Column
from benchmarks.durable.life import loop_closed
from benchmarks.durable.measuring import within_limit
from benchmarks.measure import Row


async def lives(name: str, quick: bool) -> Row:
    """A closed loop as in P9: microseconds per whole life."""
    row = await loop_closed(name, quick)
    rate = row["rate"]
    row["us"] = 1e6 / rate if rate else None
    return row


CASES = (
    Case(
        name="durable-metered",
        target="P15",
        title="submit with a cost, claim, run, settle with the usage, result back: 1,000 in flight",
        measure=lambda name, quick: within_limit(lives(name, quick)),
        judged=("waitline, three buckets", "waitline, requests only"),
        columns=(
            Column("us", "µs per job", ",.1f"),
            Column("rate", "jobs/s"),
            Column("p50_ms", "p50, ms", ",.1f"),
            Column("p99_ms", "p99, ms", ",.1f"),
        ),
        note="As in P9, one worker process with 1,000 slots, 1,000 tenants whose buckets never bind. Both "
        "tell what they used; with three buckets a cost is named too. They are the tenants' own buckets: "
        "what gates cost is not in it.",
    ),
)
