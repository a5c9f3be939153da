"""Gates in the database: declared by operators, and following what their upstreams say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from asyncpg import Connection

from scheduler.core.account import shape_of
from scheduler.core.ear import Ear
from scheduler.core.limits import limits_of
from scheduler.core.quota import NS
from scheduler.core.shared import SharedGate
from scheduler.core.signals import News, Signal, Upstream, What
from scheduler.core.stored import StoredJob
from scheduler.stores.postgres import rows
from scheduler.stores.postgres.locked import Locked
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import Heard

CHANNEL = "waitline_gates"
"""On which it is told that a gate is another one than before, beyond what its grants change."""


async def look(connection: Connection) -> dict[str, SharedGate]:
    """All gates as they are, without a lock."""
    found = await connection.fetchval("select json_agg(g)::text from waitline.gate as g")
    return {gate.name: gate for gate in rows.read_gates(found)}


async def declare(connection: Connection, upstreams: Mapping[str, Upstream]) -> None:
    """Make gates that are not there, and give those that are what is said of them now."""
    if upstreams.keys() - (await look(connection)).keys():
        # Whoever has locked all gates has not locked one that comes after that: it comes when they are done.
        await connection.execute("lock table waitline.gate in exclusive mode")
    locked = await Locked.these(connection, ())
    now = await locked.time(connection)
    changed = []
    for name, upstream in sorted(upstreams.items()):
        given, gate = rows.write_upstream(upstream), locked.gates.get(name)
        if gate is None:
            state = rows.write_gate(SharedGate(name, upstream, now))[-1]
            await connection.execute(statement("create_gate"), name, given, state)
        elif rows.write_upstream(gate.upstream) != given:
            gate.upstream = upstream
            gate.reshape(shape_of(limits_of(gate)), now)
            gate.free, gate.cut, gate.failures = gate.free + gate.cut, 0, 0
            await connection.execute("update waitline.gate set given = $2 where name = $1", name, given)
            changed.append(name)
    await _follow(connection, locked, changed, now)


async def hear(connection: Connection, heard: Sequence[Heard]) -> tuple[list[News], list[str]]:
    """Take note of answers, in the order in which they came; what happened at the gates, and who closed."""
    locked = await Locked.these(connection, ())
    now = await locked.time(connection)
    shapes = {name: gate.shape for name, gate in locked.gates.items()}
    closed = {name for name, gate in locked.gates.items() if gate.closed_until is not None}
    ear = Ear(locked.gates, now)
    for one in heard:
        if one.gate in locked.gates:
            job = StoredJob(one.tenant, one.job, one.slot, rows.policy_of(None), one.cost)
            job.slot = one.slot
            ear.note(now, one.gate, job, _by_now(one, now))
    paused = {item.gate for item in ear.news if item.what is What.PAUSED}
    if paused:
        await connection.execute(statement("look_now"), sorted(paused), now, None)
    shut = {name for name, gate in locked.gates.items() if gate.closed_until is not None}
    changed = [name for name, gate in locked.gates.items() if gate.shape is not shapes[name]]
    await _follow(connection, locked, sorted({*changed, *(shut ^ closed)}), now)
    return ear.news, sorted(shut - closed)


def _by_now(heard: Heard, now: int) -> Signal:
    """What an upstream said, long ago if the database was away: what is left of a time that it named."""
    signal = heard.signal
    if signal.retry_after is None or heard.at is None:
        return signal
    return replace(signal, retry_after=max(0.0, signal.retry_after - max(0, now - heard.at) / NS))


async def resume(connection: Connection, names: Sequence[str] | None) -> list[News]:
    """Open gates that are closed or paused; all of them for None. Raises ValueError for an unknown one."""
    locked = await Locked.these(connection, ())
    now = await locked.time(connection)
    ear = Ear(locked.gates, now)
    names = sorted(locked.gates) if names is None else names
    for name in names:
        _known(locked, name)
        ear.open(now, name)
    await _follow(connection, locked, names, now)
    return ear.news


async def drop(connection: Connection, name: str) -> None:
    """Forget a gate. Raises ValueError for an unknown one, and while jobs wait or run there."""
    locked = await Locked.these(connection, ())
    _known(locked, name)
    left = await connection.fetchval(
        "select count(*) from waitline.job where gate = $1 and state in (0, 1)", name
    )
    if left:
        raise ValueError(f"gate: {name!r} has {left} jobs that wait or run, and cannot be dropped")
    await connection.execute(statement("drop_gate"), name)
    await connection.execute("select pg_notify($1, '')", CHANNEL)


def _known(locked: Locked, name: str) -> None:
    if name not in locked.gates:
        raise ValueError(f"gate: must be one of {sorted(locked.gates)}, got {name!r}")


async def _follow(connection: Connection, locked: Locked, changed: Sequence[str], now: int) -> None:
    """Save gates, and have everybody who waits at those that changed looked at: by the next claims."""
    for name in changed:
        gate = locked.gates[name]
        (amounts,) = await connection.fetch(statement("backlog"), name)
        units = zip(gate.shape.limits, gate.shape.units, strict=True)
        gate.backlog = [amounts[index] * unit for index, unit in units]
    before = locked.sooner()
    await locked.save_gates(connection)
    if changed:
        await connection.execute(statement("stir_lines"), changed, now)
        await connection.execute(statement("look_at_all"), changed, now)
    if changed or before is not None:
        await connection.execute("select pg_notify('waitline_due', $1)", str(now))
    await connection.execute("select pg_notify($1, '')", CHANNEL)
