"""Forget: what a tenant left behind goes; what it used of its limits stays while it makes a difference."""

from __future__ import annotations

from asyncpg import Connection

from scheduler.core.stored import TenantState
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.settling import end_untaken, withdraw
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import CANCELLED, FAR

PAGE = 5000
"""Jobs, of whatever tenant, that are looked through in one transaction."""

DROPPED = 20
"""Tenants in one transaction."""


async def forget_jobs(connection: Connection, tenant: str, after: int, last: int) -> int | None:
    """Forget a tenant's jobs among the next ones after a number; where to go on, None at the end.

    Those that wait are cancelled; their rows stay without content, for their callers to hear of it. Those
    that run are marked and their workers told. The rest is deleted.
    """
    (page,) = await connection.fetch(statement("page_of_jobs"), tenant, after, last, PAGE)
    if page["jobs"]:
        # Under the lock of the tenant from here on: no job of it changes its state meanwhile.
        jobs = [(job, tenant) for job in page["jobs"]]
        told = await withdraw(connection, jobs, CANCELLED, "cancelled")
        running = await connection.fetch(statement("forget_running"), page["jobs"])
        await connection.execute(statement("forget_ended"), page["jobs"], told)
        await end_untaken(connection, [row["id"] for row in running], tenant)
        for row in running:
            await connection.execute("select pg_notify('waitline_stop', $1)", str(row["id"]))
    end: int | None = page["last"]
    return end


async def mark(connection: Connection, tenant: str) -> None:
    """Have a tenant's row looked at later: it goes once its buckets are full and it has no jobs.

    What was learned of it goes now, under its lock, and what its last jobs teach goes with the row.
    """
    await connection.execute("update waitline.tenant set forgotten = 0 where name = $1", tenant)
    await connection.execute("delete from waitline.learned where tenant = $1", tenant)


def owes(locked: Locked, state: TenantState) -> bool:
    """Whether it is ahead of others at any gate."""
    return any(gate.owes(state) for gate in locked.gates.values())


async def idle_tenants(connection: Connection, about: int, keep: int) -> tuple[list[TenantState], int]:
    """Forgotten tenants whose absence would change no decision, and when to look at them again if they stay.

    One that still counts is looked at again later: when it is idle by itself.
    """
    due = await connection.fetch(
        "select name from waitline.tenant where forgotten <= $1 order by forgotten limit $2", about, DROPPED
    )
    if not due:
        return [], about
    locked = await Locked.these(connection, [row["name"] for row in due])
    now = await locked.time(connection)
    later: dict[str, int] = {}
    for name, state in locked.states.items():
        idle = state.tenant().idle_at()
        if idle > now:
            later[name] = min(idle, FAR)
        elif owes(locked, state):
            later[name] = now + keep
    await connection.execute(statement("look_later"), list(later), list(later.values()))
    return [state for name, state in locked.states.items() if name not in later], now + keep


async def drop_tenant(connection: Connection, idle: TenantState, later: int) -> int:
    """Delete the row of a tenant as it was found idle: 1, or 0 if it has jobs left or was charged since.

    Then it is looked at again `later`, when its jobs may have been pruned. What it costs is two walks over
    the table of jobs, so nobody else is locked.
    """
    gone = await connection.fetch(statement("drop_tenant"), idle.name, rows.write_numbers(idle.zeros))
    if not gone:
        await connection.execute(statement("look_later"), [idle.name], [later])
    return len(gone)
