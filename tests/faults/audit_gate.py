"""The judgement of a gate: what passed it against its limits, and what it counts at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from scheduler.core.account import shape_of
from scheduler.stores.postgres.rows import read_upstream
from tests.faults.audit_tenant import (
    ROUNDING,
    Row,
    by_slots,
    concurrency,
    excess,
    replay,
    starts_keep_the_rate,
)

GATES = """
select
    g.name, g.given, g.running, g.state,
    (select coalesce(sum(waiting), 0) from waitline.line where gate = g.name)::bigint as waiting,
    (select count(*) from waitline.line where gate = g.name and start is not null) as stood
from waitline.gate as g
"""


def gate_is_passed_by_law(
    row: Row, events: Sequence[Row], starts: Sequence[Row], blocks: Sequence[Row], wishes: Mapping[int, bool]
) -> Iterator[str]:
    """All that is told is of those who passed it; see `tenant_is_served_by_law` for the rest."""
    name, quota, state = f"gate {row['name']}", read_upstream(row["given"]).quota, json.loads(row["state"])
    yield from nothing_is_left(name, row, state)
    yield from concurrency(name, quota, events)
    scale = shape_of(quota).only
    if scale is None:
        return
    left = {event["job"] for event in events if event["what"] == "left"}
    back = {job for job in left if not wishes.get(job, True)}
    too_many = excess(scale, by_slots(events, back, left - wishes.keys()), ROUNDING)
    if too_many > 0:
        yield f"{name}: {too_many:.3f} permits above its rate, by slots"
    returned = sorted(event["at"] for event in events if event["what"] == "left" and event["job"] in back)
    yield from starts_keep_the_rate(name, scale, [*starts, *blocks], returned)
    if not any(event["what"] == "granted" for event in events):
        return  # as full as it was made, whenever that was
    if left <= wishes.keys() and (zero := replay(scale, events, back)) != state["zeros"][0]:
        yield f"{name}: {(state['zeros'][0] - zero) / scale.unit:.6f} permits too few in the bucket"


def nothing_is_left(name: str, row: Row, state: Row) -> Iterator[str]:
    """Nobody runs or waits any more: so it has to say."""
    found = {what: row[what] for what in ("running", "waiting", "stood")}
    said = {what: state[what] for what in ("lines", "crowd", "stood")} | {"backlog": sum(state["backlog"])}
    if any(found.values()) or any(said.values()):
        yield f"{name}: {found} at the end, and it says {said}"
