"""What this process knows of the gates in the database, and what it has heard of their upstreams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from scheduler.core.gate import RAMP_FULL
from scheduler.core.limits import named
from scheduler.core.policy import Overload
from scheduler.core.quota import DIMENSIONS, NS
from scheduler.core.shared import SharedGate
from scheduler.core.signals import Answer, News, Signal, Upstream, What
from scheduler.stores.postgres import gates, looking, settling
from scheduler.stores.postgres.batches import Batches
from scheduler.stores.postgres.connections import LOST, Connections, patiently
from scheduler.stores.postgres.opened import Opened
from scheduler.stores.postgres.statements import statement
from scheduler.stores.values import Grown, Heard

BATCH = 500
"""Answers in one transaction."""

SOON = 0.5
"""Seconds between tries to write them, at most: others may be about to pass a gate that is shut."""


class Hearing:
    """The gates as they were when this process last looked; empty where there are none.

    `on_news` hears what happened at gates because of what was heard here.
    """

    def __init__(self, store: Opened, connections: Connections) -> None:
        self.gates: dict[str, SharedGate] = {}
        self.on_news: set[Callable[[News], object]] = set()
        self._store = store
        self._connections = connections
        self._heard: Batches[Heard, None] = Batches(self._note, BATCH)
        self._grown: Batches[Grown, None] = Batches(self._charge, BATCH)
        self._looking = asyncio.Lock()
        self._pending: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """See how the gates are; what was seen last is what counts."""
        async with self._looking, self._connections.connection() as connection:
            self.gates = await gates.look(connection)

    async def declare(self, upstreams: Mapping[str, Upstream], overload: Overload | None = None) -> None:
        """Make gates, and give those that are there what is said of them now; and an order for late lines."""
        async with self._connections.transaction() as connection:
            if upstreams:
                await gates.declare(connection, upstreams)
            if overload is not None:
                order = overload.target_ns, overload.order == "newest"
                await connection.execute("select waitline.declare_overload($1, $2)", *order)
        await self.look()

    async def drop(self, name: str) -> None:
        """Forget a gate. Raises ValueError for an unknown one, and while jobs wait or run there."""
        async with self._connections.transaction() as connection:
            await gates.drop(connection, name)
        await self.look()

    async def resume(self, names: Sequence[str] | None) -> None:
        """Open gates that are closed or paused; all of them for None."""
        async with self._connections.transaction() as connection:
            self.publish(await gates.resume(connection, names))
        await self.look()
        await self._judge(self.gates if names is None else names)

    def resume_soon(self, names: Sequence[str] | None) -> None:
        """Open gates as soon as the database can be reached."""
        self._start(patiently(partial(self.resume, names)))

    async def see(self) -> tuple[Mapping[str, tuple[SharedGate, int]], int]:
        """All gates, with the jobs that wait for them, and the time."""
        async with self._connections.connection() as connection:
            found = await gates.look(connection)
            rows = await connection.fetch(statement("waiting_at_gates"))
        waiting = {row["name"]: row["waiting"] for row in rows}
        return {name: (gate, waiting[name]) for name, gate in found.items()}, rows[0]["now"] if rows else 0

    def shut_until(self, gate: str, job: int) -> int | None:
        """Until when a call must not begin although it was granted: the gate was closed since."""
        known = self.gates.get(gate)
        if known is None or known.closed_until is None or known.probe_id == job:
            return None
        # After that time nobody is granted but a probe, of which this process may not know yet.
        return known.closed_until if known.closed_until > self._store.about() else None

    # --- hearing --------------------------------------------------------------------------------------------

    def hear(self, heard: Heard) -> None:
        """Take note of an answer soon. That nobody may call any more counts here at once."""
        gate = self.gates.get(heard.gate)
        if gate is None or not says_anything(gate, heard.signal, heard.slot, self._store.about()):
            return
        now, signal = self._store.about(), heard.signal
        if signal.answer is Answer.SPEND_LIMIT and gate.closed_until is None:
            gate.closed_until = now + int(gate.upstream.spend_probe * NS)
            gate.probe_id = None
        elif signal.answer is not Answer.ACCEPTED and signal.retry_after is not None:
            gate.paused_until = max(gate.paused_until, now + named(signal.retry_after))
        self._start(self._heard.do(replace(heard, at=heard.at or now), self._store.group))

    def grow(self, grown: Grown) -> None:
        """Charge a running call for output beyond its cost soon; if that is lost, its end charges it."""
        self._start(self._grown.do(grown, self._store.group))

    async def _charge(self, grown: Sequence[Grown]) -> Sequence[None]:
        with suppress(*LOST):
            async with self._connections.transaction() as connection:
                await settling.grow(connection, grown)
        return [None] * len(grown)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._store.group.create_task(work)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _note(self, heard: Sequence[Heard]) -> Sequence[None]:
        await self._write(heard)
        return [None] * len(heard)

    async def _hear(self, heard: Sequence[Heard]) -> tuple[list[News], list[str]]:
        async with self._connections.transaction() as connection:
            return await gates.hear(connection, heard)

    async def _write(self, heard: Sequence[Heard]) -> None:
        # Each step is repeated by itself: what was heard counts once, and is acted upon.
        news, closed = await patiently(partial(self._hear, heard), SOON)
        await patiently(self.look, SOON)
        self.publish(news)
        for name in closed:
            await patiently(partial(self._refuse, name))
        await self._judge([item.gate for item in news if item.what is What.PAUSED])
        if any(item.what in {What.PAUSED, What.LIMIT} for item in news):
            await patiently(self.look_at_ladders)

    async def look_at_ladders(self) -> int:
        """Let jobs take rungs that have waited for as long as they say; how many were looked at."""
        looked, some = 0, looking.MOST
        while some == looking.MOST:
            some = await self._look_at_some()
            looked += some
        return looked

    async def _look_at_some(self) -> int:
        async with self._connections.transaction() as connection:
            some, news = await looking.look(connection, self._store.about())
        self.publish(news)
        return some

    async def _refuse(self, name: str) -> None:
        """Refuse all who wait at a gate that was closed, and have no other way."""
        after: int | None = 0
        while after is not None:
            async with self._connections.transaction() as connection:
                after, news = await looking.refuse(connection, name, after)
            self.publish(news)

    async def _judge(self, names: Iterable[str]) -> None:
        """Refuse those at gates who may not wait for so long, now that these are paused."""
        for name in names:
            await patiently(partial(self._judge_at, name))

    async def _judge_at(self, name: str) -> None:
        after: str | None = ""
        while after is not None:
            async with self._connections.transaction() as connection:
                after = await looking.judge(connection, name, after)

    def publish(self, news: Sequence[News]) -> None:
        """Tell what happened at gates to those who want to hear it."""
        for tell in self.on_news:
            for item in news:
                tell(item)

    async def noted(self) -> None:
        """Return when all that was heard so far is in the database: how a call ended comes after it."""
        if self._pending:
            await asyncio.wait(set(self._pending))


def says_anything(gate: SharedGate, signal: Signal, slot: int, now: int) -> bool:
    """Whether an answer could change anything at a gate, as far as is known of it.

    Most answers are accepted calls that name the limits which are known already, and more that is left than
    the buckets hold.
    """
    if signal.answer is not Answer.ACCEPTED or gate.cut or gate.failures or gate.ramp < RAMP_FULL:
        return True
    if gate.closed_until is not None:
        return True
    if any(gate.told.get(name) != limit for name, limit in signal.limits.items()):
        return True
    for index, scale, zero in zip(gate.shape.limits, gate.shape.scales, gate.zeros, strict=True):
        left = signal.remaining.get(DIMENSIONS[index])
        # What was charged since is not known here, so that the bucket holds at most this.
        if left is not None and scale.level(zero, now) > max(0, left) * scale.unit + scale.p * (now - slot):
            return True
    return False
