"""Law 7 over the store: tenants that wait at a gate are served by their weights, whoever claims and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.quota import ONE, Cost, Quota, Rate
from tests.conformance.market import Market, market
from tests.conformance.processes import Claimer
from tests.conformance.test_traces import few
from tests.core.play import MS

EQUAL, WEIGHTED = {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 2.0, "c": 5.0}

SLOTS = Quota(concurrency=10)
"""Ten calls at once, of a second each."""

TOKENS = Quota(output_tokens=Rate(1000, burst=1000))

QUICK = Quota(Rate(100, burst=1))
"""No two pass it at the same time."""


async def crowd(made: Market, count: int, cost: Cost = ONE) -> None:
    """So many jobs of every tenant."""
    await made.submit_all([(name, count, cost, None, None) for name in made.weights])


@pytest.mark.parametrize("weights", [EQUAL, WEIGHTED])
@pytest.mark.parametrize("gate", [SLOTS, Quota(Rate(10, burst=6))])
async def test_equal_tenants_and_tenants_of_one_two_and_five(
    dsn: str, weights: dict[str, float], gate: Quota
) -> None:
    async with market(dsn, weights, gate) as made:
        await crowd(made, 60)
        await made.run(70)
        made.shares.check(least=20)


async def test_a_newcomer_after_a_backlog_gets_its_share_from_then_on(dsn: str) -> None:
    """Neither what the others had before, nor less."""
    async with market(dsn, EQUAL, SLOTS) as made:
        await made.submit_all([(name, 80, ONE, None, None) for name in "ab"])
        await made.tick(5)
        assert "c" not in made.shares.order
        await made.submit("c", 40)
        before = len(made.shares.order)
        await made.tick(6)
        made.shares.check(least=35)
        assert made.shares.order[before:].count("c") == pytest.approx(20, abs=1)


async def test_a_tenant_that_was_idle_has_saved_up_nothing(dsn: str) -> None:
    async with market(dsn, {"busy": 1.0, "idle": 1.0}, SLOTS) as made:
        await made.submit("idle", 1)
        await made.submit("busy", 200)
        await made.tick(8)
        await made.submit("idle", 50)
        before = len(made.shares.order)
        await made.tick(5)
        made.shares.check(least=50)
        assert made.shares.order[before:].count("idle") == pytest.approx(25, abs=1)


async def test_many_small_jobs_and_few_large_ones_get_the_same(dsn: str) -> None:
    async with market(dsn, {"small": 1.0, "large": 1.0}, TOKENS) as made:
        await made.submit("small", 300, Cost(1, 0, 20))
        await made.submit("large", 8, Cost(1, 0, 900))
        await made.tick(12)
        made.shares.check(least=100)
        assert made.shares.order.count("large") >= 4


async def test_a_thousand_sessions_get_what_one_line_gets(dsn: str) -> None:
    async with market(dsn, {"many": 1.0, "one": 1.0}, SLOTS) as made:
        await made.submit_all([("one", 60, ONE, None, None), ("many", 1000, ONE, None, "s")])
        before = len(made.shares.order)
        await made.tick(8)
        made.shares.check(least=80)
        assert made.shares.order[before:].count("one") == pytest.approx(40, abs=1)


async def test_more_tenants_stand_there_than_a_claim_takes_jobs(dsn: str) -> None:
    """Each claim loads the first of them only."""
    weights = {f"t{number:02}": 1.0 + number % 3 for number in range(30)}
    async with market(dsn, weights, SLOTS, slots=2) as made:
        await crowd(made, 12)
        await made.tick(20)
        made.shares.check(least=4)


async def test_a_claim_goes_no_further_than_the_jobs_that_it_knows(dsn: str) -> None:
    """Of a long line it loads the first jobs only: nobody passes behind the last of them."""
    async with market(dsn, {"a": 1.0, "b": 9.0}, Quota(concurrency=120)) as made:
        await crowd(made, 250)
        await made.tick(1)
        made.shares.check(least=100)


@pytest.mark.parametrize("claimers", [2, 4])
async def test_claims_that_race_pass_tenants_in_fair_order(dsn: str, claimers: int) -> None:
    async with market(dsn, WEIGHTED, QUICK, slots=2, claimers=claimers, late=50 * MS) as made:
        await crowd(made, 60)
        await made.run(80)
        made.shares.check(least=25)


@pytest.fixture(params=[2])
def processes(dsn: str, request: pytest.FixtureRequest) -> Iterator[list[Claimer]]:
    """So many workers of the database, each a process of its own."""
    claimers = [Claimer(dsn) for _ in range(request.param)]
    yield claimers
    for claimer in claimers:
        claimer.close()


async def test_claims_of_worker_processes_pass_tenants_in_fair_order(
    dsn: str, processes: list[Claimer]
) -> None:
    async with market(dsn, WEIGHTED, QUICK, slots=2, late=50 * MS, processes=processes) as made:
        await crowd(made, 60)
        await made.run(80)
        made.shares.check(least=25)


async def test_a_tenant_is_forgotten_when_it_owes_nothing_at_the_gate(dsn: str) -> None:
    """It would be back without its debt, before others who wait."""
    async with market(dsn, {"a": 1.0, "b": 1.0}, Quota(concurrency=1)) as made:
        await made.submit_all([("b", 6, ONE, None, None), ("a", 2, ONE, None, None)])
        while made.waiting["a"] or made.running[0].tenant == "a":
            await made.run(1)
        await made.store.forget("a")
        await made.store.prune()
        names = "select name from waitline.tenant order by name"
        assert await made.store.rows(names) == [("a",), ("b",)]
        await made.run(made.waiting["b"])
        await made.store.move(made.store.now + 2 * made.store.keep_ns)
        await made.store.prune()
        assert await made.store.rows(names) == [("b",)]
        await made.end()


shares = st.lists(st.sampled_from([1.0, 1.0, 2.0, 3.0, 5.0, 0.5]), min_size=2, max_size=5)


@settings(few, max_examples=8)
@given(shares, st.lists(st.integers(1, 6), min_size=1, max_size=7), st.integers(1, 4), st.integers(0, 2000))
async def test_the_bound_of_start_time_fair_queueing(
    dsn: str, weights: list[float], sizes: list[int], slots: int, late: int
) -> None:
    """Jobs of all sizes, claims of few jobs and late ones: nobody gets ahead by more than a job each."""
    named = dict(zip("abcde", weights, strict=False))
    async with market(dsn, named, Quota(Rate(10, burst=6)), slots=slots, late=late * MS) as made:
        for number in range(6):
            asked = [
                (name, 2, Cost(sizes[(number + index) % len(sizes)]), None, None)
                for index, name in enumerate(named)
            ]
            await made.submit_all(asked)
        await made.run(7 * len(named))
        made.shares.check()


AT_ONCE = 10

USAGE = Quota(output_tokens=Rate(1000, burst=2000), concurrency=AT_ONCE)

sizes = st.tuples(st.integers(20, 400), st.integers(20, 400))

Tenants = Mapping[str, tuple[float, Sequence[int]]]
"""Of each tenant its weight, the estimate of all its jobs, and what they really use."""


async def use(made: Market, tenants: Tenants, ticks: int) -> None:
    """Let all wait all the time, and judge by what they used: within the error of what is under way."""
    asked = {
        name: (name, 40, Cost(1, 0, estimate), Cost(1, 0, real), None)
        for name, (_, (estimate, real)) in tenants.items()
    }
    await made.submit_all(list(asked.values()))
    for _ in range(ticks):
        await made.tick(1)
        low = [asked[name] for name in tenants if made.waiting[name] < 20]
        if low:
            await made.submit_all(low)
    errors = {}
    for name, (_, pair) in tenants.items():
        each, most = made.work(Cost(1, 0, abs(pair[1] - pair[0]))), made.work(Cost(1, 0, max(pair)))
        errors[name] = 2 * AT_ONCE * each + 2 * most
    made.shares.check(errors=errors)


@settings(few, max_examples=6)
@given(st.lists(st.tuples(st.sampled_from([1.0, 1.0, 2.0, 5.0]), sizes), min_size=2, max_size=4))
async def test_shares_are_by_weight_of_what_was_really_used(
    dsn: str, tenants: list[tuple[float, tuple[int, int]]]
) -> None:
    """Who uses twenty times its estimates gains nothing by it, who uses a twentieth loses nothing."""
    named = dict(zip("abcd", tenants, strict=False))
    async with market(dsn, {name: weight for name, (weight, _) in named.items()}, USAGE) as made:
        await use(made, named, 25)


async def test_who_uses_less_than_its_estimates_loses_nothing(dsn: str) -> None:
    async with market(dsn, {"a": 1.0, "b": 1.0}, USAGE) as made:
        await use(made, {"a": (1.0, (200, 20)), "b": (1.0, (200, 200))}, 25)
