"""The judgement: what the database witnessed and what the handlers wrote, against the laws."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg

from scheduler.core.account import shape_of
from scheduler.core.bucket import Scale
from scheduler.core.quota import NS, ONE, Quota
from scheduler.stores.postgres.rows import read_numbers, read_quota

WITNESS = Path(__file__).with_name("audit.sql")

CATCH_UP = 50_000_000
"""Nanoseconds by which a slot may lie before the moment of its grant, unless one permit takes longer."""

ROUNDING = 2
"""Nanoseconds: slots are exact moments, rounded up."""

DONE, FAILED, CANCELLED = 2, 3, 4

Row = dict[str, Any]


@dataclass
class Evidence:
    """All that is known at the end of a scenario."""

    jobs: dict[int, Row]
    tenants: list[Row]
    events: list[Row]
    starts: list[Row]
    accepted: list[Row]
    max_attempts: int
    answers: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """What awaiters heard, by key: ("done", result) or ("failed", kind)."""
    unanswered: Sequence[str] = ()
    cancelled: Sequence[str] = ()
    """Keys of jobs whose callers went away while they waited."""


def read_lines(path: Path) -> list[Row]:
    """A log; empty if nobody wrote one."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def collect(dsn: str, folder: Path, max_attempts: int) -> Evidence:
    connection = await asyncpg.connect(dsn)
    try:
        jobs = await connection.fetch("select * from waitline.job order by id")
        tenants = await connection.fetch("select *, zeros::text as z, work::text as w from waitline.tenant")
        events = await connection.fetch("select * from public.event order by number")
    finally:
        await connection.close()
    return Evidence(
        jobs={row["id"]: dict(row) for row in jobs},
        tenants=[dict(row) for row in tenants],
        events=[dict(row) for row in events],
        starts=read_lines(folder / "starts"),
        accepted=read_lines(folder / "accepted"),
        max_attempts=max_attempts,
    )


def violations(found: Evidence) -> list[str]:
    """Everything that breaks a law, in words; empty if all of it holds."""
    return [
        *accepted_is_kept(found),
        *one_result_each(found),
        *one_start_a_grant(found),
        *awaiters_are_answered(found),
        *nothing_leaks(found),
        *(text for tenant in found.tenants for text in tenant_is_served_by_law(found, tenant)),
    ]


def accepted_is_kept(found: Evidence) -> Iterator[str]:
    for line in found.accepted:
        job = found.jobs.get(line["job"])
        if job is None or (job["tenant"], job["key"]) != (line["tenant"], line["key"]):
            yield f"job {line['job']}: accepted under {line['key']!r}, and not in the store"


def one_result_each(found: Evidence) -> Iterator[str]:
    ends: dict[int, list[Row]] = defaultdict(list)
    for event in found.events:
        if event["what"] == "ended":
            ends[event["job"]].append(event)
        elif event["what"] not in ("accepted", "granted", "again"):
            yield f"job {event['job']}: {event['what']}"
    started = {(line["job"], line["tries"]) for line in found.starts}
    for number, job in found.jobs.items():
        if len(ends[number]) != 1:
            yield f"job {number}: ended {len(ends[number])} times, state {job['state']}"
        elif job["state"] == DONE:
            value, tries = json.loads(job["result"])["value"], ends[number][0]["tries"]
            if value != {"job": number, "tries": tries} or (number, tries) not in started:
                yield f"job {number}: the end of try {tries} is recorded with {value}"
        elif job["state"] == CANCELLED and job["key"] in found.cancelled:
            continue
        elif (job["state"], job["kind"], job["attempt"]) != (FAILED, "worker_lost", found.max_attempts):
            yield f"job {number}: state {job['state']}, {job['kind']} after {job['attempt']} attempts"


def one_start_a_grant(found: Evidence) -> Iterator[str]:
    granted = [(event["job"], event["tries"]) for event in found.events if event["what"] == "granted"]
    for number, job in found.jobs.items():
        tries = [tries for other, tries in granted if other == number] if job["tries"] != 1 else [1]
        if tries != list(range(1, job["tries"] + 1)):
            yield f"job {number}: grants {tries} for {job['tries']} tries"
    started = sorted((line["job"], line["tries"]) for line in found.starts)
    for one, other in pairwise(started):
        if one == other:
            yield f"job {one[0]}: try {one[1]} started twice"
    for job_, tries in set(started) - set(granted):
        yield f"job {job_}: try {tries} started without a grant"
    for line in found.starts:
        if line["after_slot"] < -ROUNDING or line["after_grant"] < 0:
            yield f"job {line['job']}: started {-line['after_slot']} ns before its slot"


def awaiters_are_answered(found: Evidence) -> Iterator[str]:
    for key in found.unanswered:
        yield f"{key}: whoever waits for it has no answer"
    by_key = {job["key"]: job for job in found.jobs.values()}
    for key, answer in found.answers.items():
        job = by_key.get(key)
        recorded = None
        if job is not None:
            done = job["state"] == DONE
            recorded = ("done", json.loads(job["result"])["value"]) if done else ("failed", job["kind"])
        if answer != recorded:
            yield f"{key}: answered with {answer}, recorded is {recorded}"


def nothing_leaks(found: Evidence) -> Iterator[str]:
    for row in found.tenants:
        if row["running"] or row["waiting"] or any(read_numbers(row["w"])):
            left = {name: row[name] for name in ("running", "waiting", "w")}
            yield f"{row['name']}: {left} at the end"


# --- one tenant -----------------------------------------------------------------------------------------


def tenant_is_served_by_law(found: Evidence, row: Row) -> Iterator[str]:
    name, quota = row["name"], read_quota(row["quota"])
    events = [event for event in found.events if event["tenant"] == name]
    grants = in_order(event for event in events if event["what"] == "granted")
    starts = sorted((line for line in found.starts if line["tenant"] == name), key=lambda line: line["at"])
    yield from order(name, grants, starts)
    yield from concurrency(name, quota, events)
    scale = shape_of(quota).only
    if scale is None or not grants:
        return
    too_many = excess(scale, [grant["slot"] for grant in grants], ROUNDING)
    if too_many > 0:
        yield f"{name}: {too_many:.3f} permits above its rate, by slots"
    yield from starts_keep_the_rate(name, scale, starts)
    zero, kept = replay(scale, grants), read_numbers(row["z"])[0]
    if zero != kept:
        yield f"{name}: {(kept - zero) / scale.unit:.6f} permits too few in the bucket"


def starts_keep_the_rate(name: str, scale: Scale, starts: Sequence[Row]) -> Iterator[str]:
    """A grant may reach back by the catch-up cap, however late it is, and its start may be late by itself."""
    cap = max(CATCH_UP, scale.interval)
    late = max((line["after_grant"] for line in starts), default=0)
    back = max((line["after_slot"] - line["after_grant"] for line in starts), default=0)
    if back > cap + ROUNDING:
        yield f"{name}: a slot lies {back / NS:.3f} s before its grant"
    too_many = excess(scale, [line["at"] for line in starts], cap + late)
    if too_many > 0:
        yield f"{name}: {too_many:.3f} permits above its rate, by starts within {(cap + late) / NS:.3f} s"


def in_order(grants: Iterable[Row]) -> list[Row]:
    """Grants in the order of their transactions, and in one of these by slot."""
    grants = list(grants)
    first: dict[int, int] = {}
    for grant in grants:
        first.setdefault(grant["transaction"], grant["number"])
    return sorted(grants, key=lambda grant: (first[grant["transaction"]], grant["slot"], grant["job"]))


def order(name: str, grants: Sequence[Row], starts: Sequence[Row]) -> Iterator[str]:
    firsts = [grant["job"] for grant in grants if grant["tries"] == 1]
    if firsts != sorted(firsts):
        at = next(at for at, (one, other) in enumerate(pairwise(firsts)) if other < one)
        yield f"{name}: jobs {firsts[at]} and {firsts[at + 1]} were granted in this order"
    slots = [grant["slot"] for grant in grants]
    if slots != sorted(slots):
        yield f"{name}: slots go back"
    by_worker: dict[str, list[int]] = defaultdict(list)
    for line in starts:
        if line["tries"] == 1:
            by_worker[line["worker"]].append(line["job"])
    for worker, jobs in by_worker.items():
        if jobs != sorted(jobs):
            yield f"{name}: first starts out of order in {worker}: {jobs}"


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


def excess(scale: Scale, times: Sequence[int], late: int) -> float:
    """By how many permits some interval holds more than burst + rate · (its length + `late`)."""
    worst, least = 0, None
    for count, time in enumerate(sorted(times)):
        level = count * scale.unit - scale.p * time
        least = level if least is None else min(least, level)
        worst = max(worst, level - least + scale.unit)
    return (worst - scale.capacity - scale.p * late) / scale.unit


def replay(scale: Scale, grants: Sequence[Row]) -> int:
    """The bucket after these grants and nothing else."""
    zero = scale.full(0)
    for grant in grants:
        zero = scale.charge(zero, grant["slot"], ONE.requests * scale.unit)
    return zero
