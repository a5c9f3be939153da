"""A gate that all share: whoever dies in front of it or behind it takes nothing of it along."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Callable, Sequence

import pytest

from tests.faults import audit
from tests.faults.audit import Evidence
from tests.faults.points import (
    CALLER_POINTS,
    HEAR_POINTS,
    LADDER_POINTS,
    RESCUE_POINTS,
    SUBMIT_POINTS,
    UNGATED,
    WORKER_POINTS,
)
from tests.faults.session import play
from tests.faults.stage import Machine, Stage, crowd, stage
from tests.faults.tally import Tally
from tests.faults.test_points import SEED, die, feed

pytestmark = pytest.mark.timeout(60)

GATE = {"gate_rate": 300.0, "gate_burst": 20, "gate_slots": 40}

WORKERS = [point for point in (*WORKER_POINTS, *HEAR_POINTS) if point not in UNGATED]


async def callers_die(scene: Stage, tenants: Sequence[str], points: Sequence[str]) -> None:
    for point in points:
        dies = await scene.start("caller", tenants=tenants, point=point, nth=2, holding=True)
        assert await asyncio.wait_for(dies.ended, 20) == -9, point


async def submitters_die(scene: Stage) -> None:
    keys = tuple(crowd(random.Random(SEED), 3, 20, "submitted-"))
    for point in SUBMIT_POINTS:
        process = await scene.start("submitter", keys=keys, point=point, nth=7)
        assert await process.ended == -9, point
    assert await (await scene.start("submitter", keys=keys)).ended == 0


async def test_whoever_dies_at_any_point_takes_nothing_of_a_gate_along(server: Machine) -> None:
    """Workers, callers and those who submit, at the same time."""
    async with stage(server, "points at a gate", seed=SEED, lease=0.5, longest=0.05, **GATE) as scene:
        tenants = ("t0", "t1", "c0", "c1")
        await scene.start()
        others = await scene.start("caller", tenants=tenants)
        async with asyncio.TaskGroup() as group:
            fed = group.create_task(feed(scene, "job-"))
            async with asyncio.TaskGroup() as killers:
                for half in (CALLER_POINTS[::2], CALLER_POINTS[1::2]):
                    killers.create_task(callers_die(scene, tenants, half))
                killers.create_task(submitters_die(scene))
                killers.create_task(die(scene, (*WORKERS, *RESCUE_POINTS), 3))
            fed.cancel()
        await others.kill()
        found = await scene.finish(worker=False)
        dead = (*CALLER_POINTS, *SUBMIT_POINTS, *WORKERS, *RESCUE_POINTS)
        assert sorted(kill["point"] for kill in scene.kills()) == sorted(dead), scene.title
        assert found.gates, "and all of that in front of one"


async def test_whoever_dies_at_any_point_of_a_ladder_takes_no_job_along(server: Machine) -> None:
    """They go to the other gate, and on to whoever takes deferred ones, while those die who do that."""
    gates = {"gate_rate": 60.0, "gate_burst": 5, "small_rate": 20.0}
    async with stage(server, "points of a ladder", seed=SEED, lease=0.5, longest=0.05, **gates) as scene:
        async with asyncio.TaskGroup() as group:
            fed = group.create_task(feed(scene, "job-"))
            await die(scene, LADDER_POINTS, 2)
            fed.cancel()
        found = await scene.finish()
        assert sorted(kill["point"] for kill in scene.kills()) == sorted(LADDER_POINTS), scene.title
        what = {event["what"] for event in found.events}
        assert {"deferred", "taken", "freed"} <= what, "deferred, had by somebody, and by somebody else"
        assert {event["gate"] for event in found.events if event["what"] == "granted"} == {"default", "small"}


async def test_some_deaths_at_random_with_a_gate(server: Machine) -> None:
    tally = Tally()
    await play(server, 1, 1, 6, tally)
    assert tally.killed >= 5


async def test_some_deaths_at_random_with_a_ladder(server: Machine) -> None:
    tally = Tally()
    await play(server, 1, 4, 6, tally)
    assert tally.killed >= 5


# --- the audit can fail ---------------------------------------------------------------------------------


def slot_is_kept(found: Evidence) -> None:
    found.gates[0]["running"] = 1


def line_is_kept(found: Evidence) -> None:
    said(found, "lines", 1)


def backlog_is_kept(found: Evidence) -> None:
    said(found, "backlog", [1])


def head_is_kept(found: Evidence) -> None:
    found.gates[0]["stood"] = 1


def permit_is_lost(found: Evidence) -> None:
    said(found, "zeros", [json.loads(found.gates[0]["state"])["zeros"][0] + 1])


def above_its_rate(found: Evidence) -> None:
    """Nobody above the own one, all of them together."""
    first = min(event["slot"] for event in found.events if event["what"] == "granted")
    for event in found.events:
        if event["what"] == "granted":
            event["slot"] = first + (event["slot"] - first) // 2


def too_many_at_once(found: Evidence) -> None:
    found.events.sort(key=lambda event: event["what"] in ("left", "ended"))


def said(found: Evidence, name: str, value: object) -> None:
    state = json.loads(found.gates[0]["state"])
    found.gates[0]["state"] = json.dumps({**state, name: value})


WAYS: tuple[Callable[[Evidence], None], ...] = (
    slot_is_kept,
    line_is_kept,
    backlog_is_kept,
    head_is_kept,
    permit_is_lost,
    above_its_rate,
    too_many_at_once,
)


async def test_the_audit_notices_whatever_is_wrong_at_a_gate(server: Machine) -> None:
    async with stage(
        server, "audited gate", rate=142.0, burst=20, gate_rate=60.0, gate_burst=2, gate_slots=10
    ) as scene:
        await scene.start()
        for tenant, key in crowd(random.Random(3), 4, 60):
            scene.submit(tenant, key)
        found = await scene.finish(worker=False)
        for spoil in WAYS:
            spoilt = copy.deepcopy(found)
            spoil(spoilt)
            wrong = audit.violations(spoilt)
            assert any(text.startswith("gate default") for text in wrong), (spoil.__name__, wrong)
