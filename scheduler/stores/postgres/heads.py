"""Who stands at gates, for those who want to join."""

from __future__ import annotations

from collections.abc import Mapping

from asyncpg import Connection

from scheduler.core.gate import COUNTED
from scheduler.core.shared import SharedGate
from scheduler.stores.postgres.statements import statement


async def see_heads(connection: Connection, gates: Mapping[str, SharedGate], now: int) -> None:
    """Have gates know who stands there."""
    for gate in gates.values():
        gate.placed = (gate.due,) if gate.due is not None and gate.due > now else None
    asked = [name for name, gate in gates.items() if gate.lines]
    if not asked:
        return
    for row in await connection.fetch(statement("heads"), asked, now, COUNTED + 1):
        gate = gates[row["name"]]
        gate.coming = row["coming"]
        gate.heads = [
            (int(start), int(front)) for start, front in zip(row["starts"], row["fronts"], strict=True)
        ]
