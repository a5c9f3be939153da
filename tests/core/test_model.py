"""The whole machine under random scripts: every count recounted, nobody stuck, one decision for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from scheduler.core.engine import Engine
from scheduler.core.entry import State
from scheduler.core.policy import Outlook
from scheduler.core.quota import ONE, Quota, Rate
from scheduler.core.signals import Upstream
from tests.core.invariants import check
from tests.core.play import MS, Op, Play, engine, ops, quotas

KINDS = ("offer", "chain", "settle", "withdraw", "retry", "pause", "set_quota", "hear", "resume", "advance")


class Machine(RuleBasedStateMachine):
    """One engine with two gates; after each operation all that it counts is counted again."""

    def __init__(self) -> None:
        super().__init__()
        self.play: Play | None = None

    @initialize(quota=quotas, one=quotas, two=quotas, most=st.sampled_from([1, 3, 1000]))
    def begin(self, quota: Quota, one: Quota, two: Quota, most: int) -> None:
        """Limits of all kinds at all three levels."""
        gates: dict[str, Quota | Upstream] = {"x": one, "y": Upstream(two, spend_probe=3)}
        self.play = Play(engine(quota, gates, max_running=most), after=check)

    @rule(op=ops(KINDS, gates=("x", "y")))
    def operation(self, op: Op) -> None:
        """Anything at all."""
        if self.play is not None:
            self.play.do(op)

    def teardown(self) -> None:
        """Liveness: when every run ends, everybody is served or refused; nothing waits for ever."""
        if self.play is not None:
            self.play.drain()
            assert self.play.engine.waiting == 0
            assert self.play.engine.root.running == 0


def test_the_engine_keeps_its_books_and_nobody_is_stuck() -> None:
    """Invariants after every step (see `invariants.py`), progress to the end after the last."""
    run_state_machine_as_test(Machine, settings=settings(stateful_step_count=40))


class LongWay(Engine):
    """An engine without its shortcuts: every job is decided by the general rules alone."""

    def offer(self, *arguments):  # type: ignore[no-untyped-def]
        """Pretend that no job is plain."""
        arguments[3].plain = False
        return super().offer(*arguments)

    def _start_alone(self, *arguments):  # type: ignore[no-untyped-def]
        """Nobody starts in one piece."""
        return False


FAST = [Rate(50, burst=3), Rate(200), Rate(1000, burst=2), Rate(7, burst=2)]
SIMPLE = st.builds(Quota, st.sampled_from(FAST), concurrency=st.sampled_from([None, None, None, 2]))
"""One bucket: with the default cost and nothing else asked for, what the shortcuts are for."""

SHARED = Quota(Rate(60, burst=2))
"""A gate that tenants wait at, each behind its own line."""

PLAIN: dict[str, Any] = {
    "cost": ONE,
    "head_start": 0,
    "session": None,
    "timeout": None,
    "quota": SIMPLE,
    "gap": st.integers(0, 30 * MS),
}


@given(
    st.lists(ops((*KINDS, *("offer", "advance") * 4), 2, gates=("x",), **PLAIN), min_size=6, max_size=60),
    st.sampled_from([(Quota(), 10**6), (Quota(concurrency=2), 3), (SHARED, 10**6), (SHARED, 10**6)]),
    SIMPLE,
)
def test_the_shortcuts_are_taken_and_decide_as_the_general_rules_do(
    script: list[Op], limits: tuple[Quota, int], quota: Quota
) -> None:
    """The same with plain jobs nearly alone, and all books kept on the way."""
    compare(script, limits, quota, after=check)


@given(
    st.lists(ops(KINDS, tenants=3, gates=("x",)), min_size=6, max_size=60),
    st.sampled_from([(Quota(), 10**6), (Quota(concurrency=2), 3), (SHARED, 10**6)]),
    quotas,
)
def test_the_shortcuts_decide_as_the_general_rules_do(
    script: list[Op], limits: tuple[Quota, int], quota: Quota
) -> None:
    """The plain case in one piece and the general case give the same answers at the same times."""
    compare(script, limits, quota)


def compare(
    script: list[Op],
    limits: tuple[Quota, int],
    quota: Quota,
    after: Callable[[Play], None] | None = None,
) -> None:
    """Play a script with and without the shortcuts."""
    gate, most = limits
    plays = [
        Play(engine(quota, {"x": gate}, max_running=most, kind=kind), after=after).run(script)
        for kind in (Engine, LongWay)
    ]
    assert plays[0].told == plays[1].told
    assert look(plays[0]) == look(plays[1])
    assert [e.promised for e in plays[0].jobs if e.slot] == [e.promised for e in plays[1].jobs if e.slot]


def look(play: Play) -> list[Outlook]:
    """What those that wait are expected to do now."""
    waiting = [entry for entry in play.jobs if entry.state is State.WAITING]
    return [play.engine.expected(play.now, entry) for entry in waiting]
