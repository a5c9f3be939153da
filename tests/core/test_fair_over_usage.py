"""Law 7 over real usage: shares of a gate by what was used, whatever was estimated and is under way."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.entry import Entry, State
from scheduler.core.quota import NS, Cost, Quota, Rate, Usage
from tests.core.play import PATIENT, START, engine

SLOTS = 20

GATE = Quota(output_tokens=Rate(1000, burst=2000), concurrency=SLOTS)
"""A thousand output tokens a second, twenty calls at once."""

LENGTH = NS
"""Nanoseconds of a call."""


class Market:
    """Tenants behind one gate, whose calls take a second each and end with their real usage."""

    def __init__(self, weights: dict[str, float], gate: Quota = GATE) -> None:
        quotas = {name: Quota(weight=weight) for name, weight in weights.items()}
        self.engine = engine(quotas, gates={"": gate})
        self.now = START
        self.used: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self.real: dict[Entry, int] = {}
        self.running: deque[Entry] = deque()

    def submit(
        self, tenant: str, estimate: int, real: int, count: int = 1, session: str | None = None
    ) -> None:
        """So many jobs of a tenant, with an estimate and with what they will really use."""
        for number in range(count):
            rare = {} if session is None else {"session": f"{session}{number}"}
            entry = Entry(PATIENT, Cost(1, 0, estimate), **rare)
            self.real[entry] = real
            self.waiting[tenant] += 1
            assert self.engine.offer(self.now, tenant, "", entry) is None
            if entry.state is State.RUNNING:
                self.begin(entry)

    def begin(self, entry: Entry) -> None:
        """A job has its turn."""
        self.waiting[entry.owner.name] -= 1
        self.running.append(entry)

    def run(self, seconds: float, refill: Callable[[], None] | None = None) -> None:
        """Let time pass, and end calls when they are over."""
        end = self.now + round(seconds * NS)
        while self.now < end:
            ends = self.running[0].slot + LENGTH if self.running else end
            self.now = max(self.now, min(ends, self.engine.wake or end, end))
            self.engine.advance(self.now)
            self.listen()
            while self.running and self.running[0].slot + LENGTH <= self.now:
                entry = self.running.popleft()
                real = self.real.pop(entry)
                self.used[entry.owner.name] += real
                self.engine.settle(self.now, entry, Usage(1, 0, real))
                self.listen()
            if refill is not None:
                refill()

    def listen(self) -> None:
        """Note who was granted."""
        moved, self.engine.moved = self.engine.moved, []
        for entry in moved:
            self.begin(entry)


sizes = st.tuples(st.integers(20, 400), st.integers(20, 400))


@given(st.lists(st.tuples(st.sampled_from([1, 1, 2, 5]), sizes), min_size=2, max_size=4))
@settings(max_examples=20)
def test_shares_are_by_weight_of_what_was_really_used(tenants: list[tuple[int, tuple[int, int]]]) -> None:
    """Estimates that are off by up to twenty times: within a job of each, and what is under way."""
    names = "abcd"[: len(tenants)]
    weights = {name: float(weight) for name, (weight, _) in zip(names, tenants, strict=True)}
    market = Market(weights)

    def refill() -> None:
        for name, (_, (estimate, real)) in zip(names, tenants, strict=True):
            if market.waiting[name] < 25:
                market.submit(name, estimate, real, 25)

    refill()
    market.run(3, refill)
    before = Counter(market.used)
    market.run(15, refill)
    got = {name: Fraction(market.used[name] - before[name]) / Fraction(weights[name]) for name in names}
    slack = {
        # One job of the largest kind, and the estimate error of all that may be under way, per weight.
        name: Fraction(max(estimate, real) + SLOTS * abs(real - estimate)) / Fraction(weights[name])
        for name, (_, (estimate, real)) in zip(names, tenants, strict=True)
    }
    for one in names:
        for two in names:
            assert abs(got[one] - got[two]) <= 2 * (slack[one] + slack[two])


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 5}])
def test_equal_tenants_and_tenants_of_one_two_and_five(weights: dict[str, float]) -> None:
    market = Market(weights)
    for name in weights:
        market.submit(name, 100, 100, 600)
    market.run(5)  # the burst went to who came first
    before = Counter(market.used)
    market.run(50)
    used = market.used - before
    total = sum(used.values())
    for name, weight in weights.items():
        assert used[name] == pytest.approx(total * weight / sum(weights.values()), abs=300)
    assert total == pytest.approx(50_000, abs=200)


def test_a_newcomer_after_a_backlog_gets_its_share_from_then_on() -> None:
    """Neither what the others had before, nor less."""
    market = Market({"old": 1, "new": 1})
    market.submit("old", 100, 100, 1500)
    market.run(30)
    before = market.used["old"]
    market.submit("new", 100, 100, 600)
    market.run(30)
    assert market.used["new"] == pytest.approx(market.used["old"] - before, abs=2200)  # what was under way
    market.run(20)
    again = Counter(market.used)
    market.run(10)
    assert market.used["new"] - again["new"] == pytest.approx(market.used["old"] - again["old"], abs=300)


def test_a_tenant_that_was_idle_has_saved_up_nothing() -> None:
    market = Market({"busy": 1, "idle": 1})
    market.submit("idle", 100, 100, 1)
    market.submit("busy", 100, 100, 1500)
    market.run(60)
    before = Counter(market.used)
    market.submit("idle", 100, 100, 300)
    market.run(20)
    used = market.used - before
    assert used["idle"] == pytest.approx(used["busy"], abs=2200)


def test_many_small_jobs_and_few_large_ones_get_the_same() -> None:
    market = Market({"small": 1, "large": 1})
    market.submit("small", 20, 20, 2500)
    market.submit("large", 1000, 1000, 50)
    market.run(50)
    assert market.used["small"] == pytest.approx(market.used["large"], abs=2500)


def test_a_thousand_sessions_get_what_one_line_gets() -> None:
    market = Market({"many": 1, "one": 1})
    market.submit("many", 100, 100, 1000, session="s")
    market.submit("one", 100, 100, 1000)
    market.run(5)
    before = Counter(market.used)
    market.run(40)
    used = market.used - before
    assert used["many"] == pytest.approx(used["one"], abs=300)


def test_who_uses_more_than_was_estimated_gains_nothing() -> None:
    """Ten times as much, all the time: the shares of what was used are equal again."""
    market = Market({"liar": 1, "honest": 1})
    market.submit("liar", 20, 200, 800)
    market.submit("honest", 200, 200, 800)
    market.run(60)
    before = Counter(market.used)
    market.run(60)
    used = market.used - before
    assert used["liar"] == pytest.approx(used["honest"], rel=0.15)


def test_who_uses_less_than_was_estimated_loses_nothing() -> None:
    """A tenth, all the time: the shares of what was used are equal again."""
    market = Market({"careful": 1, "exact": 1})
    market.submit("careful", 200, 20, 5000)
    market.submit("exact", 200, 200, 800)
    market.run(60)
    before = Counter(market.used)
    market.run(60)
    used = market.used - before
    assert used["careful"] == pytest.approx(used["exact"], rel=0.15)
