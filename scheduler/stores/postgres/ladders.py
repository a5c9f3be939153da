"""Ladders: jobs that wait are looked at again, and go another way if that helps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from asyncpg import Connection

from scheduler.core import ledger
from scheduler.core.entry import WAITING
from scheduler.core.ladder import look_at
from scheduler.core.quota import NOTHING, Cost
from scheduler.core.rungs import Rungs
from scheduler.core.signals import News
from scheduler.core.stored import StoredJob
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.heads import see_heads
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import FAR, Claim, Memory, Plan


async def count_deferred(connection: Connection) -> int:
    """How many jobs are deferred now."""
    found = await connection.fetchval("select count(*) from waitline.job where deferred and state = 1")
    return int(found)


async def claim(connection: Connection, worker: str, most: int, lease: int) -> list[Claim] | None:
    """Take deferred jobs that nobody has, the oldest first. None if others are busy with all there are."""
    found = await connection.fetch(statement("claim_deferred"), worker, most, lease)
    if not found and await connection.fetchval(statement("deferred_left")):
        return None
    claims = [
        Claim(
            id=row["id"],
            tenant=row["tenant"],
            prompt=row["prompt"],
            session=row["session"],
            cost=rows.cost_of(*row["cost"]),
            attempt=row["attempt"],
            tries=row["tries"],
            arrival=row["arrival"],
            promised=row["promised"],
            slot=row["slot"],
            deadline=row["deadline"],
            lease=row["lease"],
            gate=row["gate"],
            plan=Plan(row["rung"], row["predicted"], row["model"], row["max_tokens"], deferred=True),
            memory=row["memory"],
        )
        for row in found
    ]
    return sorted(claims, key=lambda claim: claim.id)


async def remember(connection: Connection, memories: Sequence[Memory]) -> list[bool]:
    """Have deferred jobs remember something; False for a try that does not hold its job any more."""
    last = {(memory.id, memory.tries): memory.text for memory in memories}
    ids, tries = zip(*sorted(last), strict=True)
    found = await connection.fetch(statement("remember"), ids, tries, [last[key] for key in sorted(last)])
    held = {(row["id"], row["tries"]) for row in found}
    return [(memory.id, memory.tries) in held for memory in memories]


async def step_aside(
    connection: Connection, locked: Locked, jobs: Sequence[int], now: int
) -> tuple[set[int], list[News]]:
    """Let jobs that wait, in that order, take the rungs that help; who goes another way now, and the news.

    Their tenants are locked. Those outside of their lines are looked at when they have been back for a while.
    """
    await see_heads(connection, locked.gates, now)
    lines: dict[str, list[StoredJob]] = defaultdict(list)
    for row in await connection.fetch(statement("waiting_lines"), sorted(locked.states)):
        job = rows.read_job(row)
        job.state = WAITING
        lines[job.tenant].append(job)
    deferred, aside, news = await count_deferred(connection), set(), []
    waiting = await connection.fetch(statement("waiting"), jobs)
    changed: list[StoredJob] = []
    outside = [row["id"] for row in waiting if row["place"] is None]
    wanted = {row["id"] for row in waiting} - set(outside)
    here = {job.sequence: job for line in lines.values() for job in line if job.policy.ladder}
    known: dict[str, Rungs] = {}
    for job in [here[number] for number in jobs if number in wanted and number in here]:
        state, line, before = locked.states[job.tenant], lines[job.tenant], (job.gate, job.cost)
        if locked.gates[job.gate].probe_id == job.sequence:
            changed.append(job)  # it stays where it is, and is looked at later
            continue
        rungs = known.get(job.tenant) or Rungs(now, locked.gates, state, line)
        rungs.deferred, rungs.max_deferred, rungs.news = deferred, job.most_deferred, []
        known[job.tenant] = rungs
        if rungs.step_aside(job, now):
            del known[job.tenant]  # its lines are other ones now
            aside.add(job.sequence)
            deferred += job.deferred
            _go(locked, job, before, now)
            if job.deferred:
                line.remove(job)
        news += rungs.news
        changed.append(job)
    await _save(connection, locked, changed, outside, now)
    return aside, news


def _go(locked: Locked, job: StoredJob, before: tuple[str, Cost], now: int) -> None:
    """Move a job from one line of its tenant to another, or out of all of them."""
    state, old = locked.states[job.tenant], locked.gates[before[0]]
    old.count(before[1], -1)
    old.leave(state)
    if not job.paid:
        state.add_work(before[1], -1)
    if job.deferred:
        state.waiting -= 1
        if job.paid:  # for a try that was refused, and it needs no other
            ledger.correct(state, job.cost, NOTHING, now)
    else:
        new = locked.gates[job.gate]
        new.join(state, now, first=True)
        new.count(job.cost, 1)
        if not job.paid:
            state.add_work(job.cost, 1)
    ledger.move(state, now)
    locked.stir(job.tenant)


async def _save(
    connection: Connection, locked: Locked, jobs: Sequence[StoredJob], outside: Sequence[int], now: int
) -> None:
    looks = [None if job.deferred else look_at(job, now) for job in jobs]
    await connection.execute(
        statement("take_rungs"),
        *locked.columns(),
        [job.sequence for job in jobs],
        [job.gate for job in jobs],
        [job.cost.requests for job in jobs],
        [job.cost.input_tokens for job in jobs],
        [job.cost.output_tokens for job in jobs],
        [job.rung for job in jobs],
        [job.predicted for job in jobs],
        [job.model for job in jobs],
        [job.max_tokens for job in jobs],
        looks,
        [job.deferred for job in jobs],
        now,
        FAR,
        list(outside),
        locked.sooner(),
    )
    await locked.save_gates(connection)
