"""P5: waiters that go away. Those behind move up, and no permit is lost or given twice."""

from __future__ import annotations

import asyncio
import random
from functools import partial

from benchmarks.cases.base import Case, Column
from benchmarks.cases.nobody_waits import names
from benchmarks.cases.queued import COLUMNS, TENANT, Start, finish
from benchmarks.measure import NS, Log, Row, now, pacing
from benchmarks.subjects import opened
from benchmarks.subjects.base import Load, Subject
from benchmarks.subjects.ours import Waitline
from scheduler.testing.virtual import VirtualLoop

RACE_RATE = 100
"""Permits per second of a tenant in the races."""


def half(name: str, quick: bool) -> Row:
    """600 waiters at 200/s; after 0.1 s every second one of those that still wait goes away."""
    rate, waiters = (2000, 60) if quick else (200, 600)

    async def main() -> Row:
        async with opened(name, Load([TENANT], rate=rate)) as subject:
            return await survivors(subject, rate, waiters, 20 / rate)

    return asyncio.run(main())


async def survivors(subject: Subject, rate: int, waiters: int, patience: float) -> Row:
    """The figures of a line of which half goes away after `patience` seconds."""
    log: Log = []
    start = Start()
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(start.first(subject.one(TENANT, log, 0)))]
    tasks += [loop.create_task(subject.one(TENANT, log, number)) for number in range(1, waiters)]
    await asyncio.sleep(0)
    asked = now()
    await asyncio.sleep(patience)
    gone = [number for number in range(1, waiters, 2) if not tasks[number].done()]
    for number in gone:
        tasks[number].cancel()
    await finish(tasks, 1.6 * waiters / rate)
    row = pacing(log, waiters - len(gone), start.time, rate, 1, asked)
    row["cancelled"] = len(gone)
    return row


class Races:
    """Two waiters at a time; the first is cancelled in the instant in which its permit is due.

    In virtual time, so that the instant is the same nanosecond. The cancellation is set off before or after
    the limiter's own timer of that instant, and by none to three turns of the loop later, so that it falls
    before the release, between the release and the waiter's resumption, and after it. Whichever it was, the
    permit is used once: by the first if it ran, else by the second, at that very instant.
    """

    def __init__(self, subject: Subject, seed: int) -> None:
        self.subject = subject
        self.dice = random.Random(seed)
        self.loop = asyncio.get_running_loop()
        self.missing: float | None = None
        self.counts = dict.fromkeys(("races", "cancelled", "between", "ran", "lost", "twice"), 0)

    async def tenant(self, tenant: str, races: int) -> None:
        """Run races one after the other, on one tenant with burst 1."""
        log: Log = []
        await self.subject.one(tenant, log, 0)
        charged = self._time()
        for _ in range(races):
            charged = await self._race(tenant, charged + NS // RACE_RATE)
        if isinstance(self.subject, Waitline):
            statistics = await self.subject.scheduler.statistics(tenant)
            self._account(statistics.levels["requests"])

    def _account(self, level: float) -> None:
        """Count the permits that the bucket should hold and does not; below 0: permits given twice.

        The bucket was never full after its first permit, so refill and level account for every permit used.
        """
        used = 1 + self.counts["races"] + self.counts["ran"]
        self.missing = round(1 + self._time() * RACE_RATE / NS - used - level, 6)

    async def _race(self, tenant: str, due: int) -> int:
        """One race for the permit that is due then. Returns the time of the last permit used."""
        ended: list[int] = []
        log: Log = []
        hops, early = self.dice.randrange(4), self.dice.random() < 0.5
        first: asyncio.Task[None] | None = None

        def cancel(left: int) -> None:
            if left or first is None:
                self.loop.call_soon(cancel, left - 1)
            elif not first.done():
                waits = getattr(first, "_fut_waiter", None)  # released, but not yet resumed?
                self.counts["between"] += waits is not None and waits.done()
                first.cancel()

        if early:
            self.loop.call_at(due / NS, cancel, hops)
        first = self.loop.create_task(self.subject.one(tenant, log, 0))
        second = self.loop.create_task(self._second(tenant, log, ended))
        await asyncio.sleep(0)
        if not early:
            self.loop.call_at(due / NS, cancel, hops)
        await asyncio.wait([first, second])
        second.result()
        return self._judge(due, first.cancelled(), ended[0])

    async def _second(self, tenant: str, log: Log, ended: list[int]) -> None:
        await self.subject.one(tenant, log, 1)
        ended.append(self._time())

    def _judge(self, due: int, cancelled: bool, started: int) -> int:
        spacing = NS // RACE_RATE
        expected = due if cancelled else due + spacing
        self.counts["races"] += 1
        self.counts["cancelled" if cancelled else "ran"] += 1
        self.counts["lost"] += started > expected + spacing // 2
        self.counts["twice"] += started < expected - spacing // 2
        return started

    def _time(self) -> int:
        return round(self.loop.time() * NS)


def summed(series: list[Races]) -> Row:
    """The counts of all tenants; the one bucket that is furthest from what it should hold."""
    row: Row = {key: sum(race.counts[key] for race in series) for key in series[0].counts}
    row["missing"] = max((abs(race.missing) for race in series if race.missing is not None), default=None)
    return row


def races(count: int, name: str, quick: bool) -> Row:
    """`count` races over 100 tenants at the same instants."""
    tenants = names(2 if quick else 100)
    each = 20 if quick else count // len(tenants)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        clock = loop.time_ns if isinstance(loop, VirtualLoop) else now

        async def main() -> Row:
            load = Load(tenants, rate=RACE_RATE, clock=clock)
            async with opened(name, load) as subject:
                series = [Races(subject, seed) for seed in range(len(tenants))]
                async with asyncio.TaskGroup() as group:
                    for race, tenant in zip(series, tenants, strict=True):
                        group.create_task(race.tenant(tenant, each))
                return summed(series)

        return runner.run(main())


HALF = Case(
    name="cancel-half",
    target="P5",
    title="600 waiters at 200/s, half of which go away after 0.1 s",
    measure=half,
    judged=("waitline", "ideal"),
    beside=(
        "waitline submit",
        "aiolimiter",
        "asynciolimiter Limiter",
        "asynciolimiter leaky",
        "pyrate-limiter, buffer 0",
        "queue + worker task",
    ),
    columns=(
        Column("total", "survivors' total ÷ schedule", ".4f"),
        *(
            column
            for column in COLUMNS
            if column.key in ("p50_ms", "p99_ms", "max_ms", "inversions", "early")
        ),
        Column("cancelled", "cancelled"),
    ),
)

RACES = Case(
    name="cancel-race",
    target="P5",
    title="Cancelled in the instant of the release, in virtual time",
    measure=partial(races, 100_000),
    judged=("waitline",),
    columns=(
        Column("races", "races"),
        Column("cancelled", "first cancelled"),
        Column("between", "of them between release and resumption"),
        Column("ran", "first ran"),
        Column("lost", "permits lost", worst=True),
        Column("twice", "given twice", worst=True),
        Column("missing", "largest error of a bucket's level, permits", ".6f", worst=True),
    ),
    most=1,
    note="Each race checks when the second starts; at the end each bucket's level must be what refill and "
    "use leave.",
)

RACES_BESIDE = Case(
    name="cancel-race-peers",
    target="P5",
    title="The same, 10,000 races",
    measure=partial(races, 10_000),
    judged=(),
    beside=("waitline submit", "ideal", "asynciolimiter leaky"),
    columns=RACES.columns[:-1],
    most=1,
    note="Only limiters that take their time from the loop can be raced in virtual time; aiolimiter does, "
    "but asks for sleeps below a nanosecond, with which virtual time does not move.",
)

CASES = (HALF, RACES, RACES_BESIDE)
