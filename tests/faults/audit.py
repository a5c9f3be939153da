"""The judgement: what the database witnessed and what the processes wrote, against the laws."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from scheduler.core.quota import NS
from scheduler.stores.postgres.rows import read_numbers
from tests.faults.audit_gate import GATES, gate_is_passed_by_law
from tests.faults.audit_tenant import ROUNDING, Row, tenant_is_served_by_law

WITNESS = Path(__file__).with_name("audit.sql")

DONE, FAILED, CANCELLED = 2, 3, 4

LAST = ("worker_lost", "Retry")
"""What the last attempt of a job may have failed by."""


@dataclass
class Evidence:
    """All that is known at the end of a scenario."""

    jobs: dict[int, Row]
    tenants: list[Row]
    events: list[Row]
    starts: list[Row]
    accepted: list[Row]
    max_attempts: int
    gates: list[Row] = field(default_factory=list)
    blocks: list[Row] = field(default_factory=list)
    """Starts of callers."""
    wishes: Mapping[int, bool] = field(default_factory=dict)
    """Of each grant of a caller that ended by its own wish, or was about to: whether it was used."""
    answers: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """What awaiters heard, by key: ("done", result) or ("failed", kind)."""
    unanswered: Sequence[str] = ()
    cancelled: Sequence[str] = ()
    """Keys of jobs whose callers went away while they waited."""
    forgotten: Sequence[str] = ()
    """Tenants that were forgotten now and then, and once more at the end."""
    sessions: int = 0
    """Conversations of forgotten tenants."""
    time: int = 0
    """The database's, at the end."""


def read_lines(path: Path) -> list[Row]:
    """A log; empty if nobody wrote one."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def collect(dsn: str, folder: Path, max_attempts: int, forgotten: Sequence[str] = ()) -> Evidence:
    connection = await asyncpg.connect(dsn)
    try:
        jobs = await connection.fetch("select * from waitline.job order by id")
        tenants = await connection.fetch("select *, zeros::text as z, work::text as w from waitline.tenant")
        gates = await connection.fetch(GATES)
        events = [dict(row) for row in await connection.fetch("select * from public.event order by number")]
        sessions = await connection.fetchval(
            "select count(*) from waitline.session where tenant = any($1)", list(forgotten)
        )
        time = await connection.fetchval("select waitline.now_ns()")
    finally:
        await connection.close()
    return Evidence(
        jobs={row["id"]: dict(row) for row in jobs},
        tenants=[dict(row) for row in tenants],
        events=events,
        starts=read_lines(folder / "starts"),
        accepted=read_lines(folder / "accepted"),
        max_attempts=max_attempts,
        gates=[dict(row) for row in gates],
        blocks=list(_timed(read_lines(folder / "blocks"), events)),
        wishes={line["job"]: line["used"] for line in read_lines(folder / "wishes")},
        forgotten=forgotten,
        sessions=sessions,
        time=time,
    )


def _timed(blocks: Sequence[Row], events: Sequence[Row]) -> Iterator[Row]:
    """Starts of callers as those of jobs are: how long after their slots and grants.

    Or rather since the transaction of the grant began.
    A caller's lease does not tell the moment of its grant: its process may have renewed it just then.
    """
    began = {event["job"]: event["began"] for event in events if event["what"] == "granted"}
    for line in blocks:
        times = {
            "after_slot": line["wall"] - line["slot"],
            "after_grant": line["wall"] - began.get(line["job"], line["wall"]),
        }
        yield {**line, **times, "tries": 1}


def violations(found: Evidence) -> list[str]:
    """Everything that breaks a law, in words; empty if all of it holds."""
    return [
        *accepted_is_kept(found),
        *one_end_each(found),
        *one_result_each(found),
        *one_start_a_grant(found),
        *awaiters_are_answered(found),
        *nothing_leaks(found),
        *forgotten_is_gone(found),
        *(text for tenant in found.tenants for text in one_tenant(found, tenant)),
        *(text for gate in found.gates for text in one_gate(found, gate)),
    ]


def one_tenant(found: Evidence, row: Row) -> Iterator[str]:
    name = row["name"]
    events = [event for event in found.events if event["tenant"] == name]
    starts, blocks = _granted(found.starts, events), _granted(found.blocks, events)
    anew = found.time if name in found.forgotten else None
    return tenant_is_served_by_law(row, events, starts, blocks, found.wishes, anew)


def one_gate(found: Evidence, row: Row) -> Iterator[str]:
    events = [event for event in found.events if event["gate"] == row["name"]]
    starts, blocks = _granted(found.starts, events), _granted(found.blocks, events)
    return gate_is_passed_by_law(row, events, starts, blocks, found.wishes)


def _granted(lines: Sequence[Row], events: Sequence[Row]) -> list[Row]:
    """The starts of what was granted by these events. Those of deferred jobs are nobody's permits."""
    grants = {(event["job"], event["tries"]) for event in events if event["what"] == "granted"}
    return [line for line in lines if (line["job"], line["tries"]) in grants]


def accepted_is_kept(found: Evidence) -> Iterator[str]:
    for line in found.accepted:
        job = found.jobs.get(line["job"])
        if job is None or (job["tenant"], job["key"]) != (line["tenant"], line["key"]):
            yield f"job {line['job']}: accepted under {line['key']!r}, and not in the store"


def one_end_each(found: Evidence) -> Iterator[str]:
    """Of everything that was in a line, also of what has no row any more."""
    ends: Counter[int] = Counter()
    seen: set[int] = set()
    for event in found.events:
        seen.add(event["job"])
        if event["what"] in ("ended", "left", "withdrawn"):
            ends[event["job"]] += 1
            if event["what"] != "ended" and event["home"] is None:
                yield f"job {event['job']}: {event['what']} without an end"
        elif event["what"] not in ("accepted", "granted", "again", "deferred", "taken", "freed"):
            yield f"job {event['job']}: {event['what']}"
    for number in sorted(seen | found.jobs.keys()):
        if ends[number] != 1:
            left = ("state", "worker", "lease", "attempt", "place", "turn", "returns", "session", "deferred")
            job = {
                name: value for name in left if (value := found.jobs.get(number, {}).get(name)) is not None
            }
            story = [
                f"{event['what']} {(event['at'] - found.time) / NS:.2f} s {event['worker'] or ''}"
                for event in found.events
                if event["job"] == number
            ]
            yield f"job {number}: ended {ends[number]} times: {job}, by {found.time}: {story}"


def one_result_each(found: Evidence) -> Iterator[str]:
    tries = {event["job"]: event["tries"] for event in found.events if event["what"] == "ended"}
    started = {(line["job"], line["tries"]) for line in found.starts}
    for number, job in found.jobs.items():
        how = (job["state"], job["kind"])
        if job["state"] == DONE:
            value, last = json.loads(job["result"])["value"], tries.get(number)
            if value != {"job": number, "tries": last} or (number, last) not in started:
                yield f"job {number}: the end of try {last} is recorded with {value}"
        elif how == ((FAILED, "home_lost") if job["home"] else (CANCELLED, "cancelled")):
            if not job["home"] and job["key"] not in found.cancelled:
                yield f"job {number}: cancelled, and nobody wished it"
        elif how[0] != FAILED or how[1] not in LAST or job["attempt"] != found.max_attempts:
            yield f"job {number}: state {job['state']}, {job['kind']} after {job['attempt']} attempts"


def one_start_a_grant(found: Evidence) -> Iterator[str]:
    grants: dict[int, list[int]] = defaultdict(list)
    for event in found.events:
        if event["what"] in ("granted", "taken"):
            grants[event["job"]].append(event["tries"])
    for number, tries in grants.items():
        if tries != list(range(1, len(tries) + 1)):
            yield f"job {number}: grants {tries}"
    for number, job in found.jobs.items():
        if len(grants[number]) != job["tries"]:
            yield f"job {number}: grants {grants[number]} for {job['tries']} tries"
    yield from starts_are_granted([*found.starts, *found.blocks], grants)


def starts_are_granted(lines: Sequence[Row], grants: Mapping[int, Sequence[int]]) -> Iterator[str]:
    for (number, try_), times in Counter((line["job"], line["tries"]) for line in lines).items():
        if times > 1:
            yield f"job {number}: try {try_} started {times} times"
        if try_ not in grants.get(number, ()):
            yield f"job {number}: try {try_} started without a grant"
    for line in lines:
        if line["after_slot"] < -ROUNDING or line["after_grant"] < 0:
            yield f"job {line['job']}: started {-line['after_slot']} ns before its slot"


def awaiters_are_answered(found: Evidence) -> Iterator[str]:
    for key in found.unanswered:
        yield f"{key}: whoever waits for it has no answer"
    owners = {(line["job"], line["tries"]): line["tenant"] for line in found.starts}
    by_key = {job["key"]: job for job in found.jobs.values()}
    for key, answer in found.answers.items():
        job = by_key.get(key)
        recorded = None
        if job is not None:
            done = job["state"] == DONE
            recorded = ("done", json.loads(job["result"])["value"]) if done else ("failed", job["kind"])
        if answer != recorded and not (job is None and _of_a_forgotten(answer, owners, found)):
            yield f"{key}: answered with {answer}, recorded is {recorded}"


def _of_a_forgotten(answer: tuple[str, Any], owners: Mapping[tuple[int, int], str], found: Evidence) -> bool:
    """Whether it is what somebody may have heard whose tenant was forgotten."""
    how, what = answer
    if how == "done":
        return owners.get((what["job"], what["tries"])) in found.forgotten
    return bool(found.forgotten) and what in ("cancelled", "forgotten", "worker_lost")


def nothing_leaks(found: Evidence) -> Iterator[str]:
    for row in found.tenants:
        if row["running"] or row["waiting"] or any(read_numbers(row["w"])):
            left = {name: row[name] for name in ("running", "waiting", "w")}
            yield f"{row['name']}: {left} at the end"


def forgotten_is_gone(found: Evidence) -> Iterator[str]:
    """Forgotten once more when nothing waits or runs any more, it leaves nothing."""
    for number, job in found.jobs.items():
        if job["tenant"] in found.forgotten:
            yield f"job {number}: of {job['tenant']}, which was forgotten"
    if found.sessions:
        yield f"{found.sessions} conversations of tenants that were forgotten"
