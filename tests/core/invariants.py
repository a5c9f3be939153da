"""What must hold between any two operations, recounted from the jobs themselves."""

from __future__ import annotations

from typing import Any

from scheduler.core.account import Projection
from scheduler.core.agenda import SLACK, Agenda
from scheduler.core.engine import Engine
from scheduler.core.entry import Entry, State
from scheduler.core.gate import Gate
from scheduler.core.line import BLOCK, Line
from tests.core.play import Play


def check(play: Play) -> None:
    """Recount everything that the engine keeps count of."""
    engine = play.engine
    waiting = [e for e in play.jobs if e.state is State.WAITING]
    assert engine.waiting == len(waiting)
    assert {id(e) for e in engine.everyone()} == {id(e) for e in waiting}
    assert not engine.touched
    assert engine.wake is None or engine.wake > play.now
    check_slots(engine, play.jobs)
    check_lines(engine, waiting)
    check_gates(engine, waiting)
    check_sessions(engine, play.jobs)
    check_agendas(engine)
    for tenant in engine.tenants.values():
        for line in tenant.lines.values():
            check_front(engine, line, play.now)
            check_tail(engine, line, play.now)


def check_slots(engine: Engine, jobs: list[Entry]) -> None:
    """Slots in use are the jobs that run."""
    running = [e for e in jobs if e.state is State.RUNNING and e.holder is None and not e.deferred]
    assert engine.root.running == len(running)
    for gate in engine.gates.values():
        assert gate.running == sum(e.shared is gate for e in running)
    for tenant in engine.tenants.values():
        assert tenant.running == sum(e.owner is tenant for e in running)
    assert all(engine.tenants[e.owner.name] is e.owner for e in running)


def check_lines(engine: Engine, waiting: list[Entry]) -> None:
    """Each line has the jobs that wait for it, in order, and their sums."""
    assert not [e for e in waiting if e.shared.closed_until is not None], "nobody waits at a closed gate"
    lines = {(t.name, line.gate.name): line for t in engine.tenants.values() for line in t.lines.values()}
    assert {(e.owner.name, e.shared.name) for e in waiting} == set(lines)
    assert set(engine.runs) == {line for line in lines.values() if line.continuations}
    for (tenant, gate), line in lines.items():
        own = [e for e in waiting if e.owner.name == tenant and e.shared.name == gate]
        inside = sorted((e for e in own if not e.outside), key=lambda e: e.key)
        assert list(line) == inside
        assert line.size == sum(e.holder is None for e in inside)
        assert line.outside == sum(e.outside for e in own)
        assert all(0 < len(block) <= BLOCK for block in line.blocks)
        assert line.urgent is None or len(line.urgent) <= 2 * line.size + BLOCK + 1
        amounts = [line.tenant.shape.amounts(e.cost) for e in inside if not e.paid]
        assert line.work == [sum(column) for column in zip(*amounts, strict=True)] or (
            not any(line.work) and not amounts
        )


def check_gates(engine: Engine, waiting: list[Entry]) -> None:
    """A gate's backlog and crowd are those of the lines at it."""
    for gate in engine.gates.values():
        amounts = [gate.shape.amounts(e.cost) for e in waiting if e.shared is gate and not e.outside]
        assert gate.backlog == [sum(a[i] for a in amounts) for i in range(len(gate.zeros))]
        lines = [line for t in engine.tenants.values() for line in t.lines.values() if line.gate is gate]
        assert gate.lines == len(lines)
        assert abs(gate.crowd - sum(line.tenant.shape.share for line in lines)) < 1e-6
        if not gate.backlogged:
            assert not gate.fair.finish
            assert not gate.fair.entered
            assert gate.placed is None
        standing = {item[2].tenant.name: item[0] for item in (*gate.eligible, *gate.holding)}
        assert standing.keys() == gate.fair.entered.keys()
        for name, tag in standing.items():
            assert tag >= gate.fair.entered[name]
            assert tag >= gate.fair.virtual or tag <= gate.fair.finish[name], "only who was served has credit"


def check_sessions(engine: Engine, jobs: list[Entry]) -> None:
    """A session has one job in line, in backoff or running, and the others stand behind it."""
    active: dict[tuple[str, str], int] = {}
    parked = {id(e) for behind in engine.sessions.values() for e in behind}
    for entry in jobs:
        if (
            entry.session is not None
            and entry.holder is None
            and entry.state in (State.WAITING, State.RUNNING)
        ):
            name = (entry.owner.name, entry.session)
            active[name] = active.get(name, 0) + (id(entry) not in parked)
            if id(entry) in parked:
                assert entry.outside
    assert set(active) == set(engine.sessions)
    assert all(count == 1 for count in active.values())
    for behind in engine.sessions.values():
        assert [e.key for e in behind] == sorted(e.key for e in behind)


def check_agendas(engine: Engine) -> None:
    """Stale items are counted, and few."""
    agendas: list[Agenda[Any]] = [engine.events]
    agendas += [agenda for gate in engine.gates.values() for agenda in (gate.eligible, gate.holding)]
    for agenda in agendas:
        assert agenda.stale == len(agenda) - len(list(agenda))
        assert agenda.stale <= max(SLACK, len(agenda) // 2 + 1)
        assert not any(item[:3] < agenda.items[(n - 1) // 2][:3] for n, item in enumerate(agenda.items) if n)


def check_front(engine: Engine, line: Line, now: int) -> None:
    """The front is who should go first, it is placed once, and nobody waits who could go."""
    slot = line.tenant.free > 0
    if line.continuations:
        slot = slot and line.gate.free > 0 and engine.root.free > 0
    assert line.front is line.head(slot)
    if line.front is None:
        assert line.placed is None
        return
    assert line.placed is not None
    assert line.agenda is not None
    assert sum(item is line.placed for item in line.agenda) == 1
    ready = line.tenant.ready(line.tenant.shape.amounts(line.front.cost))
    if line.agenda is engine.events:
        older = [
            o.placed[0]
            for o in line.tenant.lines.values()
            if o.agenda is engine.events and o.placed and o.placed[2] < line.front.key
        ]
        assert line.placed[0] == max([ready, *older])
        assert line.placed[0] > now
    else:
        assert line.front.paid or ready <= now
        assert line.agenda is (line.gate.eligible if line.front.holder is None else line.gate.holding)
        check_no_waste(engine, line.gate, now)


def check_no_waste(engine: Engine, gate: Gate, now: int) -> None:
    """Whose turn it is could not start now."""
    turn = gate.turn(gate.free > 0 and engine.root.free > 0)
    if turn is not None:
        front = turn[2].front
        assert front is not None
        ready = max(gate.paused_until, gate.ready(gate.shape.amounts(front.cost)))
        assert ready > now
        assert gate.placed is not None
        assert gate.placed[0] <= ready


def check_tail(engine: Engine, line: Line, now: int) -> None:
    """What is remembered of the buckets behind the line is what a fresh walk over it finds."""
    if (
        line.tail is None
        or line.agenda is not engine.events
        or line.placed is None
        or len(line.tenant.lines) > 1
    ):
        return
    run = Projection(line.tenant, now)
    for entry in line:
        if not entry.paid:
            run.start(line.tenant.shape.amounts(entry.cost))
    assert (run.zeros, run.time) == (line.tail.zeros, line.tail.time)
