"""What an `Outage` says, and the share of a quota."""

from __future__ import annotations

import itertools
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler import Cost, Outage, Policy, Quota, Rate, Scheduler, Signal, Upstream
from scheduler.core.account import shape_of
from scheduler.core.engine import Engine
from scheduler.core.following import NEVER
from scheduler.core.gate import Gate
from scheduler.core.limits import limits_of
from scheduler.core.quota import NS, ONE
from scheduler.core.signals import Answer
from scheduler.runtime.standing_gates import KEPT, StandingGates, share
from scheduler.runtime.watch import MOST_ECHOES, Watch
from scheduler.stores.values import Heard, Request
from tests.runtime.harness import virtual


@pytest.mark.parametrize(
    ("wishes", "text"),
    [
        ({"share": 0}, "share: must be above 0, got 0"),
        ({"share": -0.5}, "share: must be above 0"),
        ({"share": 1.5}, "share: must be at most 1, got 1.5"),
        ({"share": "half"}, "share: must be a number, got 'half'"),
        ({"share": float("nan")}, "share: must be finite"),
        ({"patience": 0}, "patience: must be above 0, got 0"),
        ({"patience": None}, "patience: must be a number, got None"),
    ],
)
def test_bad_arguments_are_named(wishes: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        Outage(**wishes)


def test_admit_needs_a_share_and_only_a_store_can_be_down() -> None:
    with pytest.raises(TypeError, match="share: must be a number, got None"):
        Outage.admit(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outage: needs a store"):
        Scheduler(outage=Outage.refuse())


def test_the_share_of_a_quota_is_exact() -> None:
    whole = Quota(Rate(Fraction(1, 3), burst=5), output_tokens=Rate(1000, per=7), concurrency=3, weight=2.5)
    share = Outage.admit(Fraction(1, 3)).quota(whole)
    assert share.requests is not None
    assert share.output_tokens is not None
    assert share.requests.per_second == Fraction(1, 9)
    assert share.requests.burst == 1
    assert share.output_tokens.per_second == Fraction(1000, 21)
    assert share.output_tokens.burst == 8572 // 3
    assert (share.concurrency, share.weight, share.input_tokens) == (1, 2.5, None)
    assert Outage.admit(0.1).quota(Quota()) == Quota()
    assert Outage.refuse() == Outage()


def test_the_share_of_a_gate_and_of_what_its_upstream_says() -> None:
    quarter = Outage.admit(0.25)
    quota = Quota(Rate.per_minute(60, burst=3), concurrency=3)
    part = quarter.upstream(Upstream(quota, ceiling=Quota(Rate.per_minute(90, burst=8)), spend_probe=60))
    assert part == Upstream(
        Quota(Rate(15, per=60, burst=1), concurrency=1),
        ceiling=Quota(Rate(Fraction(45, 2), per=60, burst=2)),
        spend_probe=60,
    )
    said = Signal(Answer.RAMP, 3.0, {"requests": 90, "input_tokens": 2}, {"requests": 7, "output_tokens": 0})
    told = quarter.signal(said)
    assert (told.answer, told.retry_after) == (Answer.RAMP, 3.0)
    assert told.limits == {"requests": 22, "input_tokens": 1}
    assert told.remaining == {"requests": 1, "output_tokens": 0}


AHEAD = 5 * NS
"""The store's clock is five seconds ahead."""


def known(**learned: Any) -> Gate:
    """A gate as a process knows it, full at the store's time 100 s."""
    quota = Quota(Rate.per_minute(60, burst=40), output_tokens=Rate(1, burst=400), concurrency=20)
    gate = Gate("m", Upstream(quota), 100 * NS)
    for name, value in learned.items():
        setattr(gate, name, value)
    return gate


def shared(gate: Gate, gates: dict[str, Gate] | None = None) -> Gate:
    """A quarter of it, taken over when it is 100 s there."""
    gates = {} if gates is None else gates
    share(gates, {"m": gate}, Outage.admit(0.25), 95 * NS, AHEAD)
    return gates["m"]


def test_a_share_of_a_gate_of_which_nothing_is_known_is_full_and_open() -> None:
    here = shared(known())
    assert here.levels(95 * NS) == {"requests": 10, "output_tokens": 100}
    assert (here.slots, here.free, here.opens, here.closed_until) == (5, 5, 95 * NS, None)


def test_a_share_has_what_the_gate_has_learned() -> None:
    gate = known(cut=12, cut_at=99 * NS, cut_from=16, failures=2, hold=7, told={"requests": 120})
    gate.reshape(shape_of(limits_of(gate)), 100 * NS)
    here = shared(gate)
    assert here.shape.quota.requests == Rate.per_minute(30, burst=10)
    assert (here.slots, here.free, here.cut_from, here.cut_at) == (2, 2, 4, 94 * NS)
    assert (here.hold, here.failures) == (7, 2)
    here.free -= 2
    gate.cut = 0
    shared(gate, {"m": here})
    assert (here.slots, here.free) == (5, 3), "two run"


def test_the_levels_of_a_share_are_no_higher_than_in_the_store_or_before() -> None:
    gate = known()
    gate.take(100 * NS, gate.shape.amounts(Cost(30, 0, 500)))
    here = shared(gate)
    assert here.levels(95 * NS) == {"requests": 2.5, "output_tokens": -25}
    here.take(95 * NS, here.shape.amounts(Cost(2)))
    shared(known(), {"m": here})
    assert here.levels(95 * NS) == {"requests": 0.5, "output_tokens": -25}


def test_a_share_is_paused_and_closed_like_its_gate_by_its_own_clock() -> None:
    here = shared(known(paused_until=107 * NS))
    assert here.paused_until == 102 * NS
    shared(known(closed_until=400 * NS, paused_until=NEVER), {"m": here})
    assert (here.closed_until, here.paused_until) == (395 * NS, NEVER)
    shared(known(), {"m": here})
    assert (here.closed_until, here.paused_until) == (None, 95 * NS)


def test_of_what_an_upstream_says_in_an_outage_the_store_hears_the_last() -> None:
    """However long it lasts: some answers of each kind, in their order, and the one that closed the gate."""
    told: list[Heard] = []
    gate, now = known(), itertools.count(100 * NS)
    hearing: Any = SimpleNamespace(gates={"m": gate}, hear=told.append)
    store: Any = SimpleNamespace(about=now.__next__, hearing=hearing)
    engine = Engine(95 * NS, lambda _: Quota(), {"": Quota()}, 9)
    gates = StandingGates(engine, store, Outage.admit(0.25))
    gates.take_over(95 * NS, AHEAD)
    turn: Any = SimpleNamespace(gate="m", sequence=0, tenant="acme", cost=ONE, slot=100 * NS, policy=Policy())
    gates.hear(turn, None, Signal(Answer.SPEND_LIMIT), 95 * NS, AHEAD)
    for left in range(2 * KEPT):
        gates.hear(turn, None, Signal(Answer.ACCEPTED, remaining={"requests": left}), 95 * NS, AHEAD)
    gates.tell()
    assert told[0].signal.answer is Answer.SPEND_LIMIT
    assert [one.signal.remaining["requests"] for one in told[1:]] == list(range(KEPT, 2 * KEPT))
    told.clear()
    gates.tell()
    assert not told


@virtual
async def test_a_store_that_is_down_remembers_so_many_tenants_that_it_refused() -> None:
    """Those refused last; of one tenant everybody is told another time."""
    store: Any = None
    watch = Watch(store, Outage.refuse(), lambda: 100 * NS, None, lambda: None, lambda: None)

    def wait(tenant: str) -> float | None:
        return watch.refusal(Request(tenant, None, Quota(Rate(1)), Policy(), ONE)).retry_after

    first, second = wait("noisy"), wait("noisy")
    assert first != second
    for number in range(MOST_ECHOES - 1):
        wait(f"other {number}")
    assert wait("noisy") not in (first, second)
    wait("one more")
    assert wait("other 0") == first, "it was forgotten"
    assert len(watch._echoes) == MOST_ECHOES
