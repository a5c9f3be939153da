"""Random scenarios: processes die by the dozen, the database now and then, and all is judged."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from tests.faults.points import CLIMBED, GATED, HOLDERS, OUTSIDE, POINTS, RESCUE_POINTS, UNGATED, WHO
from tests.faults.processes import Process
from tests.faults.stage import Machine, Stage, crowd, stage
from tests.faults.tally import Kill, Tally

PATIENCE = 20.0
"""Seconds after which a process that never comes to its point is killed from outside."""

KIND = {point: kind for kind, points in WHO.items() for point in points}

CALLERS = tuple(f"c{number}" for number in range(9))
"""Tenants of callers only, of which each process has some: those who died hold their slots for a while."""

FORGOTTEN = ("f0", "f1")
"""Tenants that are forgotten now and then."""

RUNNING = "select exists (select from waitline.job where state = 1)"


def draw(rng: random.Random) -> tuple[int, dict[str, Any]]:
    """Tenants of a round, and the settings of its processes.

    A few slow lines are for rounds with more tenants: there must be something to do for everybody.
    """
    tenants = rng.randint(1, 6)
    several = tenants > 2
    return tenants, {
        "lease": rng.choice([0.5, 1.0]),
        "concurrency": rng.choice([1, 4, 16]),
        "max_attempts": rng.choice([3, 5, 50]),
        "longest": rng.choice([0.005, 0.05, 0.3]),
        "rate": rng.choice([20.0, 100.0, 142.0] if several else [100.0, 142.0]),
        "burst": rng.choice([1, 5, 20]),
        "slots": rng.choice([None, None, 3]) if several else None,
        "mixed": rng.random() < 1 / 2,
    }


def draw_gate(seed: int, number: int) -> dict[str, Any]:
    """The gates of a round: every third one has one, every sixth a second one that ladders lead to.

    Drawn apart, so that the other rounds stay what they were.
    """
    if number % 3 != 1:
        return {}
    rng = random.Random(f"gate {seed} {number}")
    return {
        "gate_rate": rng.choice([100.0, 200.0, 307.0]),
        "gate_burst": rng.choice([1, 10, 50]),
        "gate_slots": rng.choice([None, 30, 60]),
        "small_rate": rng.choice([30.0, 71.0, 200.0]) if number % 6 == 4 else None,
    }


class Round:
    """One scenario with a database of its own, drawn from a seed.

    The next kill is at one of the points that had the fewest with a grant in flight so far. To have one
    there, whoever can hold one is killed only while it does, and others while a worker that nobody kills is
    at work.
    """

    def __init__(self, scene: Stage, rng: random.Random, tenants: int, kills: int, tally: Tally) -> None:
        self._scene = scene
        self._rng = rng
        self._left = kills
        self._tally = tally
        self._tenants = tenants
        self._keys: list[tuple[str, str]] = []
        self._chosen: Counter[str] = Counter()
        self._dead: dict[str, Kill] = {}
        self._batches = 0

    async def run(self) -> None:
        """Kill until enough are dead, then let everything come to its end, and judge."""
        settled = await self._scene.start(concurrency=4, longest=0.3)
        async with asyncio.TaskGroup() as group:
            troubles = (self._feed(), self._disturb(), self._stall())
            background = [group.create_task(trouble) for trouble in troubles]
            async with asyncio.TaskGroup() as killers:
                for _ in range(self._rng.randint(4, 6)):
                    killers.create_task(self._kill())
            for task in background:
                task.cancel()
        async with asyncio.timeout(20):
            while self._keys and await (await self._again()).ended:  # if the database has just gone away
                pass
        found = await self._scene.finish(forgotten=FORGOTTEN)
        missing = {key for _, key in self._keys} - {job["key"] for job in found.jobs.values()}
        assert not missing, f"{self._scene.title}: never accepted: {missing}"
        assert not settled.ended.done(), f"{self._scene.title}: the worker that nobody killed is gone"
        self._tally.add(list(self._dead.values()), found.events)
        what = Counter((event["what"], event["home"] is not None) for event in found.events)
        self._tally.others["jobs"] += what["accepted", False]
        self._tally.others["callers"] += what["accepted", True]
        self._tally.others["grants"] += what["granted", False] + what["granted", True]
        self._tally.others["jobs that were deferred"] += what["deferred", False]
        came = {event["job"]: event["gate"] for event in found.events if event["what"] == "accepted"}
        self._tally.others["grants at another gate than at first"] += sum(
            event["what"] == "granted" and event["gate"] != came[event["job"]] for event in found.events
        )
        self._tally.others["jobs that failed after all their attempts"] += sum(
            job["kind"] == "worker_lost" for job in found.jobs.values()
        )

    async def _again(self) -> Process:
        """Submit under all keys once more: what was not accepted so far is now."""
        return await self._scene.start("submitter", keys=tuple(self._keys))

    # --- killing --------------------------------------------------------------------------------------------

    def _choose(self) -> str:
        """One of the points that had the fewest, counting those that somebody is on the way to."""
        settings = self._scene.defaults
        beyond = (GATED if settings.get("gate_rate") is None else UNGATED) | (
            CLIMBED if settings.get("small_rate") is None else set()
        )
        had = {p: self._tally.in_flight(p) + self._chosen[p] for p in POINTS if p not in beyond}
        fewest = min(had.values())
        point = self._rng.choice([point for point, number in had.items() if number == fewest])
        self._chosen[point] += 1
        return point

    async def _kill(self) -> None:
        while self._left > 0:
            self._left -= 1
            point = self._choose()
            kind = KIND.get(point) or self._rng.choice(["worker", "caller"])
            hit = await (self._kill_holder if point in HOLDERS else self._kill_other)(kind, point)
            if hit != point:
                self._chosen[point] -= 1
            if hit is None:
                self._left += 1

    async def _kill_holder(self, kind: str, point: str) -> str | None:
        """Kill a worker or caller. Its point is where it really died."""
        rng = self._rng
        most = 1 if point in RESCUE_POINTS else 2
        victim = await self._scene.start(
            kind,
            point=None if point == OUTSIDE else point,
            nth=rng.randint(1, most),
            holding=True,
            seed=rng.getrandbits(32),
            concurrency=max(4, self._scene.defaults["concurrency"]),  # room to claim while it holds something
            longest=max(0.3, self._scene.defaults["longest"]),
            tenants=(*(f"t{number}" for number in range(self._tenants)), *rng.sample(CALLERS, 3), *FORGOTTEN),
        )
        await asyncio.wait([victim.ended], timeout=rng.uniform(0.2, 0.8) if point == OUTSIDE else PATIENCE)
        if not victim.ended.done():
            at = time.time_ns()
            await victim.kill()
            if self._note(victim) is None:  # or it came to its point at the last moment
                self._died(victim, OUTSIDE, at)
        name = victim.role.name
        assert victim.ended.result() == -signal.SIGKILL, f"{name} ended by itself: {self._scene.errors()}"
        self._note(victim)
        return self._dead[name].point

    async def _kill_other(self, kind: str, point: str) -> str | None:
        """Kill somebody who submits or forgets, while others run. None if it did not come to that."""
        with suppress(TimeoutError):
            await self._scene.until(RUNNING)
        rng, most = self._rng, 12
        wishes: dict[str, Any] = {"tenants": (rng.choice(FORGOTTEN),)}
        if kind != "forgetter":
            self._batches += 1
            keys = tuple(crowd(rng, self._tenants, most, f"batch{self._batches}-"))
            if kind == "submitter":
                self._keys += keys
            else:
                keys = tuple((f"p{tenant}", key) for tenant, key in keys)
            wishes = {"keys": keys}
        victim = await self._scene.start(kind, point=point, nth=rng.randint(1, most // 2), **wishes)
        await victim.ended
        return self._note(victim)

    def _note(self, victim: Process) -> str | None:
        """Where a process killed itself, if it did."""
        if victim.ended.result() != -signal.SIGKILL or victim.role.name in self._dead:
            return None
        for kill in self._scene.kills():
            if kill["worker"] == victim.role.name:
                self._died(victim, kill["point"], kill["at"])
                return str(kill["point"])
        return None

    def _died(self, victim: Process, point: str, at: int) -> None:
        self._dead[victim.role.name] = Kill(victim.role.name, point, at)

    # --- life and other troubles ----------------------------------------------------------------------------

    async def _feed(self) -> None:
        rng, wave = self._rng, 0
        while True:
            if len(self._scene.unanswered) < 60:
                wave += 1
                for tenant, key in crowd(rng, self._tenants, rng.randint(1, 40), f"wave{wave}-"):
                    self._scene.submit(tenant, key)
                self._scene.submit(rng.choice(FORGOTTEN), f"forgettable{wave}")
            await asyncio.sleep(0.02)

    async def _disturb(self) -> None:
        """Now and then something else goes wrong, too."""
        scene, rng = self._scene, self._rng
        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "all connections cut": scene.cut,
            "half of the connections cut": lambda: scene.cut("random() < 0.5"),
            "listeners cut": lambda: scene.cut("query ilike 'listen%'"),
            "the database killed": lambda: scene.machine.restart(rng.uniform(0, 0.3)),
            "a tenant forgotten": lambda: scene.forget(rng.choice(FORGOTTEN)),
        }
        while True:
            await asyncio.sleep(rng.uniform(0.2, 6.0))
            what = rng.choice(list(ways))
            await ways[what]()
            self._tally.others[what] += 1

    async def _stall(self) -> None:
        """Now and then a process stands still, for up to twice its lease."""
        while True:
            await asyncio.sleep(self._rng.uniform(0, 0.5))
            if self._scene.holders:
                process = self._rng.choice(self._scene.holders)
                process.signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(self._rng.uniform(0.5, 2) * process.role.lease)
                finally:
                    process.signal(signal.SIGCONT)
                self._tally.others["a process stalled"] += 1


async def play(machine: Machine, seed: int, number: int, kills: int, tally: Tally) -> None:
    """Play one round. Raises AssertionError with all that was violated."""
    rng = random.Random(f"{seed} {number}")
    tenants, settings = draw(rng)
    title = f"python -m tests.faults --seed {seed} --round {number} --kills {kills} --hits {tally.hits}"
    settings |= draw_gate(seed, number)
    async with stage(machine, title, seed=rng.getrandbits(32), **settings) as scene:
        try:
            await Round(scene, rng, tenants, kills, tally).run()
        except* AssertionError as errors:
            raise AssertionError(f"{title}: {errors.exceptions}") from errors
