"""The judgement of one tenant: its grants and starts against its quota."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from time import monotonic_ns, time_ns
from typing import Any

from scheduler.core.account import shape_of
from scheduler.core.bucket import Scale
from scheduler.core.quota import NS, ONE, Quota
from scheduler.stores.postgres.rows import read_numbers, read_quota

CATCH_UP = 50_000_000
"""Nanoseconds by which a slot may lie before the moment of its grant, unless one permit takes longer."""

ROUNDING = 2
"""Nanoseconds: slots are exact moments, rounded up."""

Row = dict[str, Any]

Charge = tuple[int, int, int]
"""When a permit was charged, and how many had been given back by then: at least and at most."""


def tenant_is_served_by_law(
    row: Row,
    events: Sequence[Row],
    starts: Sequence[Row],
    blocks: Sequence[Row],
    wishes: Mapping[int, bool],
    anew: int | None,
) -> Iterator[str]:
    """`starts`: of its jobs, `blocks`: of its callers, `wishes`: whether these used what they had.

    `anew`: the time at the end, of a tenant that may have been deleted and seen for the first time again:
    all that can be said of its bucket is how full it is then.
    """
    name, quota = row["name"], read_quota(row["quota"])
    yield from order(name, events, starts)
    yield from sessions(name, events)
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
    yield from slots_are_near(name, scale, starts)
    yield from starts_keep_the_rate(name, scale, [*starts, *blocks], returned)
    if not left <= wishes.keys():
        return  # of one that was lost, and came back: what it wanted is not known
    if not any(event["what"] == "granted" for event in events):
        return  # nothing was ever taken from it: it is as full as it was made, whenever that was
    zero, kept = replay(scale, events, back), read_numbers(row["z"])[0]
    same = zero == kept if anew is None else scale.level(zero, anew) == scale.level(kept, anew)
    if not same:
        yield f"{name}: {(kept - zero) / scale.unit:.6f} permits too few in the bucket"


def by_slots(events: Sequence[Row], back: Collection[int], unsure: Collection[int]) -> Iterator[Charge]:
    """The charges of a tenant at their slots, in the order in which they were made.

    `unsure`: who left without a word, since it was taken for lost and came back: it may have used its permit.
    """
    returned = maybe = 0
    for event in in_order(event for event in events if event["what"] in ("granted", "left")):
        if event["what"] == "granted":
            yield event["slot"], returned, returned + maybe
        elif event["job"] in back:
            returned += 1
        elif event["job"] in unsure:
            maybe += 1


def slots_are_near(name: str, scale: Scale, starts: Sequence[Row]) -> Iterator[str]:
    """A grant may reach back by the catch-up cap, however late it is."""
    back = max((line["after_slot"] - line["after_grant"] for line in starts), default=0)
    if back > max(CATCH_UP, scale.interval) + ROUNDING:
        yield f"{name}: a slot lies {back / NS:.3f} s before its grant"


def starts_keep_the_rate(
    name: str, scale: Scale, starts: Sequence[Row], returned: Sequence[int]
) -> Iterator[str]:
    """A grant reaches back by the catch-up cap, and its start may be late by itself."""
    cap = max(CATCH_UP, scale.interval)
    late = max((line["after_grant"] for line in starts), default=0)
    # What is given back between two starts may be used again; by these clocks, about between them.
    wall, slack = time_ns() - monotonic_ns(), cap + late
    times = sorted(line["at"] for line in starts)
    charges = (
        (time, bisect(returned, time + wall - slack), bisect(returned, time + wall + slack)) for time in times
    )
    too_many = excess(scale, charges, slack)
    if too_many > 0:
        yield f"{name}: {too_many:.3f} permits above its rate, by starts within {slack / NS:.3f} s"


def in_order(events: Iterable[Row]) -> list[Row]:
    """Events in the order of their transactions, and in one of these by slot."""
    events = list(events)
    first: dict[int, int] = {}
    for event in events:
        first.setdefault(event["transaction"], event["number"])
    return sorted(events, key=lambda event: (first[event["transaction"]], event["slot"] or 0, event["job"]))


def order(name: str, events: Sequence[Row], starts: Sequence[Row]) -> Iterator[str]:
    """In the line for each gate. Who took a rung while it waited came to another one than at first."""
    came = {event["job"]: event["gate"] for event in events if event["what"] == "accepted"}
    grants = in_order(event for event in events if event["what"] == "granted")
    slots = [grant["slot"] for grant in grants]
    if slots != sorted(slots):
        yield f"{name}: slots go back"
    lines: dict[Any, list[int]] = defaultdict(list)
    for grant in grants:
        if grant["tries"] == 1 and grant["gate"] == came.get(grant["job"]) and grant["session"] is None:
            lines[grant["gate"]].append(grant["job"])
    stayed = {job: gate for gate, jobs in lines.items() for job in jobs}
    for jobs in lines.values():
        if jobs != sorted(jobs):
            at = next(at for at, (one, other) in enumerate(pairwise(jobs)) if other < one)
            yield f"{name}: jobs {jobs[at]} and {jobs[at + 1]} were granted in this order"
    by_worker: dict[Any, list[int]] = defaultdict(list)
    for line in sorted(starts, key=lambda line: line["at"]):
        if line["tries"] == 1 and line["job"] in stayed:
            by_worker[line["worker"], stayed[line["job"]]].append(line["job"])
    for (worker, _), jobs in by_worker.items():
        if jobs != sorted(jobs):
            yield f"{name}: first starts out of order in {worker}: {jobs}"


def sessions(name: str, events: Sequence[Row]) -> Iterator[str]:
    """The jobs of a session run one after the other, each to its end, in the order in which they came."""
    under_way: dict[str, int] = {}
    last: dict[str, int] = {}
    for event in events:
        job, session = event["job"], event["session"]
        if session is None or event["what"] in {"accepted", "again", "freed"}:
            continue
        if event["what"] in {"ended", "left", "withdrawn"}:
            if under_way.get(session) == job:
                del under_way[session]
            continue
        before = under_way.setdefault(session, job)
        if before != job or last.get(session, job) > job:
            yield f"{name}: job {job} of session {session} begins while {before} is not over"
        last[session] = job


def concurrency(name: str, quota: Quota, events: Sequence[Row]) -> Iterator[str]:
    running: set[int] = set()
    most = 0
    for event in events:
        if event["what"] == "granted":
            running.add(event["job"])
        else:
            running.discard(event["job"])
        most = max(most, len(running))
    if quota.concurrency is not None and most > quota.concurrency:
        yield f"{name}: {most} jobs at once, {quota.concurrency} are allowed"


def excess(scale: Scale, charges: Iterable[Charge], late: int) -> float:
    """By how many permits some interval holds more than burst + rate · (its length + `late`)."""
    worst, least = 0, None
    for count, (time, before, after) in enumerate(charges):
        level = count * scale.unit - scale.p * time
        first = level - before * scale.unit
        least = first if least is None else min(least, first)
        worst = max(worst, level - after * scale.unit - least + scale.unit)
    return (worst - scale.capacity - scale.p * late) / scale.unit


def replay(scale: Scale, events: Sequence[Row], back: Collection[int]) -> int:
    """The bucket after these grants, and after some of them were given `back`, and nothing else."""
    zero, amount = scale.full(0), ONE.requests * scale.unit
    for event in in_order(event for event in events if event["what"] in ("granted", "left")):
        if event["what"] == "granted":
            zero = scale.charge(zero, event["slot"], amount)
        elif event["job"] in back:
            zero -= amount
    return zero
