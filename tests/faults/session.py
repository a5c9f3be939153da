"""Random scenarios: workers and submitters die by the dozen, the database now and then, and all is judged."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.points import OUTSIDE, RESCUE_POINTS, SUBMIT_POINTS, WORKER_POINTS
from tests.faults.processes import Process
from tests.faults.stage import Machine, Stage, crowd, stage

PATIENCE = 2.0
"""Seconds after which a worker that never comes to its point is killed from outside."""

GRANTING = ("claim.locked", "claim.commit", "claim.sent")
"""Points at which a grant is under way that neither the process nor the database knows yet."""


@dataclass
class Tally:
    """What happened in all rounds."""

    kills: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)

    @property
    def killed(self) -> int:
        return self.kills.total()

    def lines(self) -> list[str]:
        """A histogram: kills at each point, and how many of them with a grant in flight."""
        rows = [f"{'point':<20} {'kills':>6} {'with a grant in flight':>24}"]
        rows += [f"{point:<20} {n:>6} {self.in_flight[point]:>24}" for point, n in sorted(self.kills.items())]
        rows.append(f"{'all':<20} {self.killed:>6} {self.in_flight.total():>24}")
        return rows + [f"{what}: {n}" for what, n in sorted(self.others.items())]


class Round:
    """One scenario with a database of its own, drawn from a seed."""

    def __init__(self, scene: Stage, rng: random.Random, kills: int, tally: Tally) -> None:
        self._scene = scene
        self._rng = rng
        self._left = kills
        self._tally = tally
        self._tenants = rng.randint(1, 6)
        self._keys: list[tuple[str, str]] = []

    async def run(self) -> None:
        """Kill until enough are dead, then let everything come to its end, and judge."""
        async with asyncio.TaskGroup() as group:
            troubles = (self._feed(), self._disturb(), self._stall())
            background = [group.create_task(trouble) for trouble in troubles]
            async with asyncio.TaskGroup() as victims:
                for _ in range(self._rng.randint(2, 4)):
                    victims.create_task(self._kill_workers())
                victims.create_task(self._kill_submitters())
            for task in background:
                task.cancel()
        if self._keys:
            await (await self._scene.start("submitter", keys=tuple(self._keys))).ended
        found = await self._scene.finish()
        missing = {key for _, key in self._keys} - {job["key"] for job in found.jobs.values()}
        assert not missing, f"{self._scene.title}: never accepted: {missing}"
        self._tally.others["jobs"] += len(found.jobs)
        self._tally.others["grants"] += sum(event["what"] == "granted" for event in found.events)
        self._tally.others["jobs that failed after all their attempts"] += sum(
            job["kind"] == "worker_lost" for job in found.jobs.values()
        )

    def _take(self) -> bool:
        self._left -= 1
        return self._left >= 0

    async def _kill_workers(self) -> None:
        rng = self._rng
        while self._take():
            point = rng.choice((*WORKER_POINTS, *RESCUE_POINTS)) if rng.random() < 0.85 else None
            victim = await self._scene.start(point=point, nth=rng.randint(1, 5), seed=rng.getrandbits(32))
            seconds = PATIENCE if point else rng.uniform(0.05, 0.6)
            await asyncio.wait([victim.ended], timeout=seconds)
            if not victim.ended.done():
                point = OUTSIDE
                victim.signal(signal.SIGCONT)
                await victim.kill()
            await self._count(victim, point or OUTSIDE)

    async def _count(self, victim: Process, point: str) -> None:
        name = victim.role.name
        assert victim.ended.result() == -signal.SIGKILL, f"{self._scene.title}: {name} ended by itself"
        held = "select count(*) from waitline.job where state = 1 and worker = $1"
        runs = sum(kill["runs"] for kill in self._scene.kills() if kill["worker"] == name)
        self._tally.kills[point] += 1
        if runs or point in GRANTING or await self._scene.value(held, name):
            self._tally.in_flight[point] += 1

    async def _kill_submitters(self) -> None:
        rng = self._rng
        for batch in range(rng.randint(0, 3)):
            if not self._take():
                return
            keys = tuple(crowd(rng, self._tenants, 12, f"batch{batch}-"))
            self._keys += keys
            point = rng.choice(SUBMIT_POINTS)
            victim = await self._scene.start("submitter", keys=keys, point=point, nth=rng.randint(1, 12))
            await victim.ended
            if victim.ended.result() == -signal.SIGKILL:  # not if the database died before
                await self._count(victim, point)

    async def _feed(self) -> None:
        rng, wave = self._rng, 0
        while True:
            if len(self._scene.unanswered) < 60:
                wave += 1
                for tenant, key in crowd(rng, self._tenants, rng.randint(1, 40), f"wave{wave}-"):
                    self._scene.submit(tenant, key)
            await asyncio.sleep(0.02)

    async def _disturb(self) -> None:
        """Now and then something else goes wrong, too."""
        scene, rng = self._scene, self._rng
        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "all connections cut": scene.cut,
            "half of the connections cut": lambda: scene.cut("random() < 0.5"),
            "listeners cut": lambda: scene.cut("query ilike 'listen%'"),
            "the database killed": lambda: scene.machine.restart(rng.uniform(0, 0.3)),
        }
        while True:
            await asyncio.sleep(rng.uniform(0.2, 6.0))
            what = rng.choice(list(ways))
            await ways[what]()
            self._tally.others[what] += 1

    async def _stall(self) -> None:
        """Now and then a worker stands still, for up to twice its lease."""
        while True:
            await asyncio.sleep(self._rng.uniform(0, 0.5))
            if self._scene.workers:
                process = self._rng.choice(self._scene.workers)
                process.signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(self._rng.uniform(0.5, 2) * process.role.lease)
                finally:
                    process.signal(signal.SIGCONT)
                self._tally.others["a worker stalled"] += 1


async def play(machine: Machine, seed: int, number: int, kills: int, tally: Tally) -> None:
    """Play one round. Raises AssertionError with all that was violated."""
    rng = random.Random(f"{seed} {number}")
    settings = {
        "lease": rng.choice([0.5, 1.0]),
        "concurrency": rng.choice([1, 4, 16]),
        "max_attempts": rng.choice([3, 5, 50]),
        "longest": rng.choice([0.005, 0.05, 0.3]),
        "rate": rng.choice([20.0, 100.0, 142.0]),
        "burst": rng.choice([1, 5, 20]),
        "slots": rng.choice([None, None, 3]),
    }
    title = f"python -m tests.faults --seed {seed} --round {number} --kills {kills}"
    async with stage(machine, title, seed=rng.getrandbits(32), **settings) as scene:
        try:
            await Round(scene, rng, kills, tally).run()
        except* AssertionError as errors:
            raise AssertionError(f"{title}: {errors.exceptions}") from errors
