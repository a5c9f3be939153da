"""The audit can fail: what a scenario left is spoilt in one way after the other, and each is noticed."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable

import pytest

from scheduler.core.bucket import Scale
from scheduler.core.quota import Rate
from tests.faults import audit
from tests.faults.audit import Evidence
from tests.faults.audit_tenant import Row, by_slots, excess, replay
from tests.faults.points import PLAIN_POINTS, POINTS
from tests.faults.stage import Machine, Stage, crowd, stage
from tests.faults.tally import ENOUGH, LONG, Kill, Tally

pytestmark = pytest.mark.timeout(60)

SECOND = 1_000_000_000


def job_is_lost(found: Evidence) -> None:
    del found.jobs[found.accepted[0]["job"]]


def result_is_another(found: Evidence) -> None:
    job = next(job for job in found.jobs.values() if job["state"] == audit.DONE)
    job["result"] = '{"value": {"job": 0, "tries": 1}}'


def answer_is_missing(found: Evidence) -> None:
    found.unanswered = ["somebody"]


def answer_is_another(found: Evidence) -> None:
    key = next(job["key"] for job in found.jobs.values() if job["key"])
    found.answers[key] = "failed", "forgotten"


def slot_is_kept(found: Evidence) -> None:
    found.tenants[0]["running"] = 1


def permit_is_lost(found: Evidence) -> None:
    row = tenant_with(found, "left")
    row["z"] = "{" + str(int(row["z"].strip("{}")) + 1) + "}"


def started_early(found: Evidence) -> None:
    found.blocks[0]["after_slot"] = -SECOND


def started_twice(found: Evidence) -> None:
    found.blocks.append(found.blocks[0])


def started_without_a_grant(found: Evidence) -> None:
    found.events.remove(event(found, "granted", found.blocks[0]["job"]))


def ended_twice(found: Evidence) -> None:
    found.events.append(event(found, "left"))


def never_ended(found: Evidence) -> None:
    found.events.remove(event(found, "left"))


def job_went_as_callers_do(found: Evidence) -> None:
    event(found, "left")["home"] = None


def above_its_rate(found: Evidence) -> None:
    for one in found.events:
        if one["what"] == "granted":
            one["slot"] = found.events[0]["at"]


def caller_passed_a_job(found: Evidence) -> None:
    grants = [one for one in found.events if one["what"] == "granted" and one["tenant"] == "t0"]
    grants[0]["job"], grants[-1]["job"] = grants[-1]["job"], grants[0]["job"]


def too_many_at_once(found: Evidence) -> None:
    """What ends, ends after everything."""
    found.events.sort(key=lambda one: one["what"] in ("left", "ended"))


def forgotten_stays(found: Evidence) -> None:
    found.forgotten = ["t0"]


def conversation_stays(found: Evidence) -> None:
    found.sessions = 1


def event(found: Evidence, what: str, job: int | None = None) -> Row:
    return next(e for e in found.events if e["what"] == what and job in (None, e["job"]))


def tenant_with(found: Evidence, what: str) -> Row:
    name = event(found, what)["tenant"]
    return next(row for row in found.tenants if row["name"] == name)


WAYS: tuple[Callable[[Evidence], None], ...] = (
    job_is_lost,
    result_is_another,
    answer_is_missing,
    answer_is_another,
    slot_is_kept,
    permit_is_lost,
    started_early,
    started_twice,
    started_without_a_grant,
    ended_twice,
    never_ended,
    job_went_as_callers_do,
    above_its_rate,
    caller_passed_a_job,
    too_many_at_once,
    forgotten_stays,
    conversation_stays,
)


async def jobs_and_callers(scene: Stage) -> Evidence:
    """A worker, callers that are killed at last, and people who submit."""
    await scene.start()
    keys = tuple(crowd(random.Random(3), 2, 20, "submitted-"))
    assert await (await scene.start("submitter", keys=keys)).ended == 0
    for tenant, key in crowd(random.Random(4), 2, 20):
        scene.submit(tenant, key)
    callers = await scene.start("caller", tenants=("t0", "t1"), longest=0.05)
    used = "select count(*) > 30 from public.event where what = 'left'"
    await scene.until(used)
    await callers.kill()
    return await scene.finish(worker=False)


async def test_the_audit_notices_whatever_is_wrong(server: Machine) -> None:
    async with stage(server, "audited", rate=40.0, burst=2, slots=3, lease=0.5) as scene:
        found = await jobs_and_callers(scene)
        assert audit.violations(found) == []
        for spoil in WAYS:
            spoilt = copy.deepcopy(found)
            spoil(spoilt)
            assert audit.violations(spoilt), spoil.__name__


async def test_a_tenant_that_is_half_forgotten_is_noticed(server: Machine) -> None:
    """What somebody has left undone who died forgetting is seen; once it is done, nothing is left."""
    async with stage(server, "half forgotten", rate=50.0, burst=5) as scene:
        worker = await scene.start()
        for number in range(60):
            scene.submit("f0", f"{number}")
        await scene.until("select count(*) = 60 and count(finished) > 5 from waitline.job")
        victim = await scene.start("forgetter", tenants=("f0",), point="forget.sent")
        assert await asyncio.wait_for(victim.ended, 10) == -9
        async with asyncio.timeout(20):
            while scene.unanswered:  # noqa: ASYNC110 - whoever is not forgotten is served
                await asyncio.sleep(0.02)
        half = await audit.collect(scene.dsn, scene.folder, 50, ["f0"])
        assert any("forgotten" in text for text in audit.violations(half))
        assert (await scene.finish(worker=False, forgotten=["f0"])).jobs == {}
        assert not worker.ended.done()


def test_what_is_given_back_may_be_used_again_from_then_on_and_not_before() -> None:
    """One permit a second and a burst of one: three grants within a second take two given back between."""
    scale = Scale.of(Rate(1), 1)

    def events(*whats: tuple[str, int, float]) -> list[Row]:
        return [
            {"number": n, "transaction": n, "what": what, "job": job, "slot": int(at * SECOND)}
            for n, (what, job, at) in enumerate(whats)
        ]

    first, back = [("granted", 1, 10.0), ("left", 1, 10.0)], [("granted", 2, 10.1), ("left", 2, 10.1)]
    last = ("granted", 3, 10.2)
    honest = events(*first, *back, last)
    assert excess(scale, by_slots(honest, {1, 2}, ()), 0) <= 0
    assert replay(scale, honest, {1, 2}) < replay(scale, honest, {1})
    assert excess(scale, by_slots(honest, {1}, ()), 0) == pytest.approx(0.9)
    assert excess(scale, by_slots(honest, {1}, {2}), 0) <= 0, "nobody knows what became of its permit"
    early = events(first[0], back[0], first[1], back[1], last)
    assert excess(scale, by_slots(early, {1, 2}, ()), 0) == pytest.approx(0.9)


def test_a_kill_counts_by_what_was_in_flight_at_its_instant() -> None:
    def told(at: int, what: str, job: int, worker: str | None = None) -> Row:
        return {"at": at, "what": what, "job": job, "worker": worker}

    events = [
        told(10, "granted", 1, "one"),
        told(20, "granted", 2, "other"),
        told(30, "ended", 1, "one"),
        told(50, "again", 2, "other"),
    ]
    tally = Tally()
    times = (9, 10, 29, 30, 49, 50)
    tally.add([Kill("one", "claim.sent", at) for at in times], events)
    tally.add([Kill("submits", PLAIN_POINTS[0], at) for at in times], events)
    assert (tally.held["claim.sent"], tally.running["claim.sent"]) == (2, 4)
    assert tally.in_flight("claim.sent") == 2
    assert (tally.held[PLAIN_POINTS[0]], tally.in_flight(PLAIN_POINTS[0])) == (0, 4)


def test_a_long_session_fails_if_a_point_was_hit_too_seldom() -> None:
    tally = Tally()
    tally.before.update(dict.fromkeys(POINTS, ENOUGH))
    tally.before["claim.sent"] -= 1
    tally.kills["outside"] = LONG - 1
    assert tally.too_few() == []
    tally.kills["outside"] = LONG
    assert tally.too_few() == ["claim.sent"]
