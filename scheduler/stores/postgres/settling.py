"""Settle: attempts end, jobs go back to their lines or leave them, and whoever waits for them is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from asyncpg import Connection, Record

from scheduler.core.quota import NOTHING, Quota
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.settlement import Ending, Settlement
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import CANCELLED, FAILED, HOME_LOST, WAITING, Again, Ended, Grown


async def settle(connection: Connection, endings: Sequence[Ending]) -> list[bool]:
    """Record how tries ended. False for one that no longer held its job: nothing of it is recorded."""
    locked = await Locked.these(connection, {ending.tenant for ending in endings})
    held = await connection.fetch(
        statement("running"), [ending.id for ending in endings], [ending.tries for ending in endings]
    )
    now = await locked.time(connection)
    # By try: one that lost its lease unnoticed may be in the same batch as the one that holds it now.
    by_try, settlement = {(row["id"], row["tries"]): row for row in held}, Settlement(locked, now)
    for ending in endings:
        row = by_try.get((ending.id, ending.tries))
        if row is not None and isinstance(ending, Ended):
            settlement.end(row, ending)
        elif row is not None and isinstance(ending, Again):
            settlement.repeat(row, ending)
    await settlement.save(connection)
    return [(ending.id, ending.tries) in by_try for ending in endings]


async def grow(connection: Connection, grown: Sequence[Grown]) -> None:
    """Charge running calls for output beyond their cost, if they still hold their job."""
    locked = await Locked.these(connection, {one.tenant for one in grown})
    held = await connection.fetch(
        statement("running"), [one.id for one in grown], [one.tries for one in grown]
    )
    settlement = Settlement(locked, await locked.time(connection))
    by_try = {(row["id"], row["tries"]): row for row in held}
    for one in grown:
        row = by_try.get((one.id, one.tries))
        if row is not None:
            settlement.grow(row, one.output_tokens)
    if settlement.grown:
        await settlement.save(connection)


async def give_back(connection: Connection, jobs: Mapping[int, str]) -> None:
    """Take callers (id, tenant) back that did not begin, from their lines or just after their grants."""
    locked = await Locked.these(connection, set(jobs.values()))
    found = await connection.fetch(statement("give_back"), sorted(jobs))
    settlement = Settlement(locked, await locked.time(connection))
    for row in found:
        if row["state"] == WAITING:
            settlement.withdraw(row, CANCELLED, "cancelled", settlement.now)
        else:
            settlement.end(row, Ended(row["id"], row["tenant"], 1, CANCELLED, usage=NOTHING))
    await settlement.save(connection)


async def withdraw(
    connection: Connection, jobs: Iterable[tuple[int, str]], state: int, kind: str, expired: bool = False
) -> list[int]:
    """End waiting jobs (id, tenant); if `expired`, those whose deadline or lease is over. Their ids."""
    wanted = dict(jobs)
    locked = await Locked.these(connection, set(wanted.values()))
    found = await connection.fetch(statement("waiting"), sorted(wanted))
    now = await locked.time(connection)
    settlement = Settlement(locked, now)
    for row in found:
        end = now if not expired else row["lease"] if kind == HOME_LOST else row["deadline"]
        if row["tenant"] in locked.states and end <= now:  # or its lease was renewed meanwhile
            settlement.withdraw(row, state, kind, end)
    await settlement.save(connection)
    return settlement.over


async def stop(connection: Connection, job: int, tenant: str) -> int | None:
    """Cancel a job: a waiting one leaves its line, a running one's worker stops it. Its state before."""
    if await withdraw(connection, [(job, tenant)], CANCELLED, "cancelled"):
        return WAITING
    row = await connection.fetchrow(statement("stop"), job, tenant)
    if row is None:
        return None
    await connection.execute("select pg_notify('waitline_stop', $1)", str(job))
    await end_untaken(connection, [job], tenant)
    return int(row["state"])


async def end_untaken(connection: Connection, jobs: Sequence[int], tenant: str) -> None:
    """Cancel those of a tenant's jobs that are deferred and that nobody has taken: nobody else would."""
    found = await connection.fetch(statement("untaken"), jobs)
    if not found:
        return
    locked = await Locked.these(connection, [tenant])
    tries = [row["id"] for row in found], [row["tries"] for row in found]
    settlement = Settlement(locked, await locked.time(connection))
    for row in await connection.fetch(statement("running"), *tries):
        settlement.end(row, Ended(row["id"], tenant, row["tries"], CANCELLED, kind="cancelled"))
    await settlement.save(connection)


async def rescue(connection: Connection, about: int, max_attempts: int | None, most: int) -> int:
    """Take over what dead processes held and end what waited past its deadline; how many jobs that were.

    `max_attempts` None leaves the jobs of dead workers to those who run jobs.
    """
    found = await connection.fetch(statement("lost"), most, about, max_attempts is not None)
    if not found:
        return 0
    # All at once, in the one order: what follows locks some of them again.
    await Locked.these(connection, {row["tenant"] for row in found})
    waiting = [row for row in found if not row["running"]]
    late = [(row["id"], row["tenant"]) for row in waiting if row["home"] is None]
    rescued = len(await withdraw(connection, late, FAILED, "timeout", expired=True)) if late else 0
    ghosts = [(row["id"], row["tenant"]) for row in waiting if row["home"] is not None]
    rescued += len(await withdraw(connection, ghosts, FAILED, HOME_LOST, expired=True)) if ghosts else 0
    lost = [row for row in found if row["running"]]
    if not lost:
        return rescued
    locked = await Locked.these(connection, {row["tenant"] for row in lost})
    held = await connection.fetch(
        statement("running"), [row["id"] for row in lost], [row["tries"] for row in lost]
    )
    now = await locked.time(connection)
    settlement = Settlement(locked, now)
    for row in held:
        if row["lease"] > now:
            continue  # renewed meanwhile
        rescued += 1
        if row["home"] is not None:
            ended = Ended(row["id"], row["tenant"], row["tries"], FAILED, kind=HOME_LOST)
            settlement.end(row, ended)
        elif row["deferred"]:
            over = _over(row, now, max_attempts)
            if over is None:
                settlement.free.append((row["id"], False))
            else:
                settlement.end(row, over)
        elif max_attempts is not None and row["attempt"] >= max_attempts and not row["stop"]:
            ended = Ended(row["id"], row["tenant"], row["tries"], FAILED, kind="worker_lost")
            settlement.end(row, ended)
        else:
            settlement.repeat(row, Again(row["id"], row["tenant"], row["tries"]))
    await settlement.save(connection)
    return rescued


def _over(row: Record, now: int, max_attempts: int | None) -> Ended | None:
    """How a deferred job ends that nobody has any more; None if others may take it."""
    fixed = row["id"], row["tenant"], row["tries"]
    if row["stop"]:
        return Ended(*fixed, CANCELLED, kind="cancelled")
    if row["deadline"] is not None and row["deadline"] <= now:
        return Ended(*fixed, FAILED, kind="timeout")
    if row["attempt"] >= (max_attempts or 0):
        return Ended(*fixed, FAILED, kind="worker_lost")
    return None


async def set_quota(connection: Connection, tenant: str, quota: Quota, first: Quota) -> None:
    """Change a tenant's limits with its jobs waiting; those that can never fit any more fail.

    `first`: its quota if it was never seen. Its full buckets are those of that one, as if it was idle so far.
    """
    locked = await Locked.made(connection, {tenant: first})
    settlement = Settlement(locked, await locked.time(connection))
    await settlement.requota(connection, {tenant: quota})
    await settlement.save(connection)
    await connection.execute(statement("set_quota"), tenant, rows.write_quota(quota))
