"""Laws 8, 12 and 13: bounds, forgetting, time as a value, and lateness that changes nothing."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scheduler.core
from scheduler.core.engine import Engine
from scheduler.core.entry import Entry, State
from scheduler.core.policy import Cause, Policy, Reason
from scheduler.core.quota import NS, Quota, Rate
from scheduler.core.tenant import Tenant
from tests.core.play import MS, PATIENT, START, Op, Play, engine, ops

KINDS = ("offer", "offer", "chain", "settle", "withdraw", "retry", "pause", "set_quota", "advance")
QUOTA = Quota(Rate(3, burst=2), concurrency=2)
GATE = Quota(Rate(8, burst=4), concurrency=3)


def test_law_8_tenants_touched_once_are_forgotten() -> None:
    """20,000 tenants, one job each: after a while there is nothing of them left, not even an event."""
    one = engine(Quota(Rate(2, burst=5)))
    for number in range(20_000):
        entry = Entry(PATIENT)
        one.offer(START + number, f"tenant-{number}", "", entry)
        one.settle(START + number, entry)
    assert len(one.tenants) == 20_000
    one.advance(START + 10 * NS)
    assert not one.tenants
    assert not one.events.items
    assert one.most_tenants < 20_000
    assert one.wake is None


def test_law_8_whoever_still_matters_is_remembered() -> None:
    """A bucket in debt, an echo, a quota set by hand: forgetting any of them would change a decision."""
    one = engine(Quota(Rate(1, burst=2)))
    now, jobs = START, []
    for name, policy in (("debt", PATIENT), ("echo", Policy.strict())):
        for _ in range(5):
            entry = Entry(policy)
            one.offer(now, name, "", entry)
            jobs.append(entry)
            if entry.state is State.RUNNING:
                one.settle(now, entry)
    one.set_quota(now, "override", Quota(Rate(9)))
    one.advance(now + NS)
    assert set(one.tenants) == {"debt", "echo", "override"}
    for entry in jobs:
        one.withdraw(now + NS, entry)
    one.advance(now + 60 * NS)
    assert set(one.tenants) == {"override"}
    assert one.tenants["override"].shape.quota == Quota(Rate(9))


def test_law_8_nobody_is_forgotten_with_a_bucket_that_is_not_full() -> None:
    """Used again just before it would be looked over, a tenant is kept until its bucket has filled anew."""
    one = engine(Quota(Rate(1, burst=3)))

    def use(now: int) -> None:
        entry = Entry(PATIENT)
        one.offer(now, "a", "", entry)
        one.settle(now, entry)

    use(START)
    wake = one.wake
    assert wake is not None
    for _ in range(3):
        use(wake - 1)
    one.advance(wake)
    assert "a" in one.tenants
    one.advance(wake + 10 * NS)
    assert not one.tenants


class Elephant(Engine):
    """An engine that forgets nobody."""

    def _forget(self, tenant: Tenant, time: int) -> None:
        """Remember."""


@given(st.lists(ops(KINDS, tenants=3), min_size=6, max_size=60))
def test_law_8_forgetting_changes_no_decision(script: list[Op]) -> None:
    """Every trace gives the same answers, whether or not tenants are forgotten in between."""
    plays = [Play(engine(QUOTA, gates={"": GATE}, kind=kind)).run(script) for kind in (Engine, Elephant)]
    assert plays[0].told == plays[1].told


def test_law_8_every_line_and_all_of_them_together_are_bounded() -> None:
    """The job above a bound is refused with the bound's reason, and a time."""
    one = engine(Quota(Rate(1)))
    one.max_waiting = 5
    short = Policy(max_wait=None, max_queue=3)
    answers = [one.offer(START, "a", "", Entry(short)) for _ in range(5)]
    assert answers[:4] == [None] * 4
    assert answers[4] is not None
    assert answers[4].reason is Reason.QUEUE_FULL
    assert answers[4].retry_after == 4 * NS
    answers = [one.offer(START, "b", "", Entry(PATIENT)) for _ in range(4)]
    assert [answer.reason for answer in answers if answer] == [Reason.MAX_WAITING]


def test_law_8_refusals_are_spread_inside_their_bound() -> None:
    """10,000 callers refused at one instant: bounded times, and hardly two alike."""
    one = engine(Quota(Rate(10)))
    strict = Policy(max_wait=0, max_queue=100)
    told = [one.offer(START, "a", "", Entry(strict)) for _ in range(10_000)]
    waits = [refusal.retry_after for refusal in told if refusal]
    assert max(waits) <= 102 * NS // 10
    assert len(set(waits)) == len(waits)


MODULES = [info.name for info in pkgutil.walk_packages(scheduler.core.__path__, "scheduler.core.")]


@pytest.mark.parametrize("name", MODULES)
def test_law_12_the_core_reads_no_clock_and_draws_no_number(name: str) -> None:
    """No module of the core imports anything that could: time is a value, and so is everything else."""
    allowed = {
        "__future__", "bisect", "collections", "contextlib", "dataclasses", "decimal", "enum", "fractions",
        "functools", "heapq", "itertools", "math", "operator", "scheduler", "typing",
    }  # fmt: skip
    source = Path(str(importlib.import_module(name).__file__)).read_text()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for imported in names:
            assert imported.partition(".")[0] in allowed, f"{name} imports {imported}"
            assert not imported.startswith("scheduler") or imported.startswith("scheduler.core")


@given(st.lists(ops(KINDS, tenants=3), min_size=6, max_size=60))
def test_law_12_the_same_script_gives_the_same_answers(script: list[Op]) -> None:
    """Nothing but the arguments decides; shifting all times by an hour shifts all answers by an hour."""
    here = Play(engine(QUOTA, gates={"": GATE})).run(script)
    again = Play(engine(QUOTA, gates={"": GATE})).run(script)
    hour = 3600 * NS
    later = Play(engine(QUOTA, gates={"": GATE}, now=START + hour), now=START + hour).run(script)
    assert again.told == here.told
    moved = [
        (t.job, t.what, t.time - hour if t.time > hour else t.time)  # a wait, or no time, is not shifted
        for t in later.told
    ]
    assert moved == [(t.job, t.what, t.time) for t in here.told]


@given(
    st.lists(ops(("offer", "settle", "withdraw", "retry"), tenants=3, timeout=None), min_size=6, max_size=40),
    st.data(),
)
def test_law_13_lateness_within_the_cap_changes_nothing(script: list[Op], data: st.DataObject) -> None:
    """Advancing at every wake-up, or only with the next operation (up to 50 ms late): the same grants."""
    script = [op._replace(gap=op.gap % 50_000_001 or 49_000_000, policy=PATIENT) for op in script]
    late, prompt = (Play(engine(QUOTA, gates={"": GATE}), by_number=True) for _ in range(2))
    for op in script:
        late.do(op)
        end = prompt.now + op.gap
        while (wake := prompt.engine.wake) is not None and wake <= end:
            step = data.draw(st.integers(0, 1)) and (end - wake) // 2
            prompt.do(Op("advance", gap=wake - prompt.now + step))
        prompt.do(op._replace(gap=end - prompt.now))
    assert late.told == prompt.told
    assert late.engine.stalls == prompt.engine.stalls == 0


def test_law_13_a_longer_stall_is_counted_and_named() -> None:
    """A wake-up 5 s late at 20 per second moves the schedule to 50 ms before now, and says so."""
    play = Play(engine(Quota(Rate(20))))
    for _ in range(5):
        play.do(Op("offer"))
    play.do(Op("advance", gap=5 * NS))
    assert [time - START for _, time in play.grants] == [0, 4_950_000_000, 5_000_000_000]
    assert play.engine.stalls == 1
    assert play.jobs[1].delayed == {Cause.STALL}
    play.drain()
    assert play.grants[-1][1] - START == 5_100_000_000


def test_law_13_a_slow_bucket_has_a_longer_cap() -> None:
    """At one a minute a wake-up 40 s late still charges the slot: the next one is due a minute after it."""
    play = Play(engine(Quota(Rate.per_minute(1))))
    for _ in range(3):
        play.do(Op("offer"))
    play.do(Op("advance", gap=100 * NS))
    play.drain()
    assert [(time - START) // NS for _, time in play.grants] == [0, 60, 120]
    assert play.engine.stalls == 0


def test_law_8_idle_tenants_are_looked_over_a_few_at_a_time() -> None:
    """Tenants touched one after another are not all forgotten in one step, which would hold up others."""
    one = engine(Quota(Rate(100)))
    for number in range(1000):
        entry = Entry(PATIENT)
        one.offer(START + number * MS, f"t{number}", "", entry)
        one.settle(START + number * MS, entry)
    forgotten = []
    while one.tenants and one.wake is not None:
        before = len(one.tenants)
        one.advance(one.wake)
        forgotten.append(before - len(one.tenants))
    assert sum(forgotten) == 1000
    assert max(forgotten) <= 3
