"""Reserve, then settle: what a call that names no cost is charged, and what its real usage teaches."""

from __future__ import annotations

import asyncio
import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import (
    Cost,
    Estimates,
    Job,
    Quota,
    QuotaExceeded,
    Rate,
    Retry,
    Scheduler,
    UpstreamError,
    Usage,
)
from scheduler.runtime.estimates import count_cheaply
from scheduler.testing.virtual import VirtualClock
from tests.runtime.harness import virtual

WIDE = Quota(input_tokens=Rate.per_minute(60_000), output_tokens=Rate.per_minute(60_000))


def spending(*usages: Usage) -> Any:
    """A handler whose calls use this, one after the other, the last one for ever."""
    left = list(usages)
    costs: list[Cost] = []

    async def handler(job: Job) -> Cost:
        costs.append(job.cost)
        job.settle(left.pop(0) if len(left) > 1 else left[0])
        return job.cost

    return handler, costs


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("a" * 400, 107),
        ("é" * 200, 107),
        ([{"type": "text", "text": "a" * 400}], 107),
        ([{"type": "image", "source": {"data": "A" * 100_000}}], 1607),
        ([{"role": "user", "content": [{"type": "text", "text": "a" * 40}]}], 17),
        ([{"role": "user", "content": "a" * 40}], 17),
        ([{"type": "tool_result", "content": [{"type": "text", "text": "abcd"}]}], 8),
        ([{"type": "tool_use", "input": {"x": 1}}], 7 + 10),
        (["abcd"], 7 + 2),
    ],
)
def test_the_cheap_count(prompt: Any, tokens: int) -> None:
    assert count_cheaply(prompt) == tokens


@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_the_cheap_count_counts_whatever_json_holds(content: Any) -> None:
    assert 0 < count_cheaply([content]) <= 1607 + len(json.dumps(content).encode())


@virtual
async def test_input_is_counted_and_output_learned_for_each_tenant() -> None:
    """The mean moves by an eighth, half as much again is reserved; who is new begins where the gate is."""
    handler, costs = spending(Usage(1, 207, 80), Usage(1, 207, 80), Usage(1, 207, 160))
    async with Scheduler(handler, gates=WIDE, clock=VirtualClock()) as scheduler:
        for _ in range(4):
            await scheduler.submit("acme", "a" * 400)
        await scheduler.submit("other", "a" * 800)
    assert costs == [
        Cost(1, 107, 256),
        Cost(1, 207, 120),
        Cost(1, 207, 120),
        Cost(1, 207, 135),
        Cost(1, 307, 148),
    ]


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 900), st.integers(0, 900)), max_size=30))
def test_what_was_reserved_gives_way_to_what_was_used(jobs: list[tuple[int, int, int]]) -> None:
    """Whatever was estimated, tenant and gate are left with exactly the sum of the real usages."""
    quota = Quota(
        Rate(1000, burst=1000), input_tokens=Rate(1, burst=10**6), output_tokens=Rate(1, burst=10**6)
    )

    @virtual
    async def main() -> None:
        used = [Usage(1, given, produced) for _, given, produced in jobs] or [Usage()]
        handler, _ = spending(*used)
        async with Scheduler(handler, quotas=quota, gates=quota, clock=VirtualClock()) as scheduler:
            for size, _, _ in jobs:
                await scheduler.submit("acme", "x" * (size + 1))
            gate = scheduler.engine.gates[""].levels(0)
            assert gate["requests"] == 1000 - len(jobs)
            assert gate["input_tokens"] == 10**6 - sum(given for _, given, _ in jobs)
            assert gate["output_tokens"] == 10**6 - sum(produced for _, _, produced in jobs)
            if jobs:
                assert scheduler.engine.tenants["acme"].levels(0) == gate

    main()


@virtual
async def test_output_beyond_its_estimate_is_charged_while_it_comes() -> None:
    """By tenant and gate, once; less than the estimate changes nothing before the end."""
    quota = Quota(output_tokens=Rate(1, burst=10_000))
    levels: list[tuple[float, float]] = []

    async def handler(job: Job) -> None:
        for produced in (50, 100, 300, 200, 300, 700):
            job.grow(produced)
            engine = job.scheduler.engine
            levels.append(
                (
                    engine.gates[""].levels(0)["output_tokens"],
                    engine.tenants["acme"].levels(0)["output_tokens"],
                )
            )
        job.settle(Usage(1, 5, 650))

    async with Scheduler(handler, quotas=quota, gates=quota, clock=VirtualClock()) as scheduler:
        await scheduler.submit("acme", "hello", cost=Cost(1, 0, 100))
        assert [10_000 - gate for gate, _ in levels] == [100, 100, 300, 300, 300, 700]
        assert all(gate == tenant for gate, tenant in levels)
        assert scheduler.engine.gates[""].levels(0)["output_tokens"] == 10_000 - 650


BROKEN = [
    pytest.param(False, None, 600 + 50, 600 + 50, id="stream broken"),
    pytest.param(False, Usage(1, 0, 620), 620 + 50, 620 + 50, id="stream broken, and its usage is known"),
    pytest.param(True, None, 50, 100 + 50, id="refused"),
    pytest.param(True, Usage(1, 0, 620), 50, 100 + 50, id="refused, whatever was used"),
]
"""Refused or not, usage, and what the tenant and its gate are charged for both tries together."""


class Breaking:
    """A handler whose first try says that there is more output than was reserved, and is to be repeated."""

    def __init__(self, refused: bool = False, usage: Usage | None = None) -> None:
        self.first = refused, usage
        self.costs: list[Cost] = []

    async def __call__(self, job: Job) -> str:
        self.costs.append(job.cost)
        if len(self.costs) > 1:
            job.settle(Usage(1, 0, 50))
            return "answer"
        job.grow(600)
        if (store := getattr(job, "store", None)) is not None:
            await store.hearing.noted()
        refused, usage = self.first
        if usage is not None:
            job.settle(usage)
        raise Retry(refused=refused)


@pytest.mark.parametrize(("refused", "usage", "own", "shared"), BROKEN)
@virtual
async def test_a_repeat_reserves_what_the_first_try_did(
    refused: bool, usage: Usage | None, own: int, shared: int
) -> None:
    """The output that was charged while it came is what the first try used, and no estimate of the second."""
    quota = Quota(output_tokens=Rate(1, per=3600, burst=10_000))
    handler = Breaking(refused, usage)
    async with Scheduler(handler, quotas=quota, gates=quota, clock=VirtualClock()) as scheduler:
        assert await scheduler.submit("acme", "hello", cost=Cost(1, 0, 100)) == "answer"
        assert handler.costs == [Cost(1, 0, 100)] * 2
        engine = scheduler.engine
        assert engine.tenants["acme"].levels(0)["output_tokens"] == 10_000 - own
        assert engine.gates[""].levels(0)["output_tokens"] == 10_000 - shared


@pytest.mark.parametrize("where", ["quotas", "gates"])
@virtual
async def test_a_long_answer_that_broke_off_is_no_reason_never_to_run(where: str) -> None:
    """It was more than the burst, but that is not what its next try reserves."""
    limits: Any = {where: Quota(output_tokens=Rate(100, burst=200))}
    async with Scheduler(Breaking(), clock=VirtualClock(), **limits) as scheduler:
        assert await scheduler.submit("acme", "hello", cost=Cost(1, 0, 100)) == "answer"
        assert asyncio.get_running_loop().time() == 5.0  # 400 below nothing, and 100 above


@virtual
async def test_who_waits_hears_of_output_that_was_not_foreseen() -> None:
    """The next job starts later, and why has a name."""
    quota = Quota(output_tokens=Rate(100, burst=200))

    async def handler(job: Job) -> float:
        if job.prompt == "long":
            await asyncio.sleep(1)
            job.grow(600)
            await asyncio.sleep(1)
            job.settle(Usage(1, 1, 600))
        return asyncio.get_running_loop().time()

    async with Scheduler(handler, quotas=quota, clock=VirtualClock()) as scheduler:
        long = await scheduler.enqueue("acme", "long", cost=Cost(1, 0, 200))
        short = await scheduler.enqueue("acme", "short", cost=Cost(1, 0, 150))
        assert short.wait == 1.5
        await asyncio.sleep(1.4)
        assert short.expected == 5.5
        assert short.delayed_by == {"usage_above_estimate"}
        assert await short.result() == 5.5
        await long.result()


@virtual
async def test_all_or_nothing() -> None:
    """A job that lacks permits of one kind takes none of the others."""
    quota = Quota(Rate(5, burst=5), input_tokens=Rate(10, burst=1000), output_tokens=Rate(1, burst=300))
    handler, _ = spending(Usage(1, 100, 256))
    async with Scheduler(handler, gates=quota, clock=VirtualClock()) as scheduler:
        await scheduler.submit("acme", "x" * 372)
        second = asyncio.get_running_loop().create_task(scheduler.submit("acme", "x" * 372))
        await asyncio.sleep(0)
        assert scheduler.engine.gates[""].levels(0) == {
            "requests": 4,
            "input_tokens": 900,
            "output_tokens": 44,
        }
        await second
        assert asyncio.get_running_loop().time() == 300 - 44  # 384 are expected, and no more than fit


@virtual
async def test_a_prompt_above_the_limit_is_refused_once_and_a_long_answer_before_is_not_held_against_it() -> (
    None
):
    """Only what was counted is a reason never to run."""
    quota = Quota(input_tokens=Rate(100, burst=200), output_tokens=Rate(100, burst=100))
    handler, costs = spending(Usage(1, 5000, 5000))
    async with Scheduler(handler, gates=quota, clock=VirtualClock()) as scheduler:
        await scheduler.submit("acme", "hello")
        await scheduler.submit("acme", "hello")
        with pytest.raises(QuotaExceeded, match="cost 257 can never fit input_tokens of burst 200"):
            await scheduler.submit("acme", "x" * 1000)
    assert costs[1] == Cost(1, 200, 100)


@virtual
async def test_a_cost_that_is_given_is_taken_and_teaches_nothing() -> None:
    handler, costs = spending(Usage(1, 100, 100))
    async with Scheduler(handler, gates=WIDE, clock=VirtualClock()) as scheduler:
        await scheduler.submit("acme", "hello", cost=Cost(1, 5, 6))
        await scheduler.submit("acme", "hello")
    assert costs == [Cost(1, 5, 6), Cost(1, 9, 256)]


@virtual
async def test_nobody_is_estimated_where_only_requests_count() -> None:
    def never(prompt: Any) -> int:
        raise AssertionError("asked")

    handler, costs = spending(Usage(1, 100, 100))
    quotas = {"acme": Quota(Rate(5)), "metered": WIDE}
    options: dict[str, Any] = {"estimates": Estimates(never), "clock": VirtualClock()}
    async with Scheduler(
        handler, quotas=Quota(Rate(5, burst=9)), gates=Quota(Rate(5)), **options
    ) as scheduler:
        await scheduler.submit("acme", "hello")
    async with Scheduler(handler, quotas=quotas, **options) as scheduler:
        await scheduler.enqueue("acme", "hello", cost=Cost())
        await scheduler.submit("acme", "hello")  # known by now
        with pytest.raises(AssertionError, match="asked"):
            await scheduler.submit("metered", "hello")
    assert costs == [Cost()] * 3


@virtual
async def test_a_quota_of_tokens_that_is_set_later_is_metered() -> None:
    handler, costs = spending(Usage(1, 100, 100))
    async with Scheduler(handler, quotas=Quota(), clock=VirtualClock()) as scheduler:
        await scheduler.submit("acme", "hello")
        await scheduler.set_quota("acme", WIDE)
        await scheduler.submit("acme", "hello")
    assert costs == [Cost(), Cost(1, 9, 256)]


@virtual
async def test_counting_may_take_a_while_and_fail() -> None:
    """By `submit`, `enqueue` and the hook; the cheap count stands in when the API cannot say."""
    answers: list[int | Exception] = [50, 60, 70, UpstreamError("overloaded", 529)]

    async def count(prompt: Any) -> int:
        await asyncio.sleep(1)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    handler, _ = spending(Usage(1, 50, 256))

    class Asked:
        tenant, prompt = "acme", "hello"

    async with Scheduler(handler, gates=WIDE, estimates=Estimates(count), clock=VirtualClock()) as scheduler:
        assert await scheduler.submit("acme", "hello") == Cost(1, 50, 256)
        ticket = await scheduler.enqueue("other", "hello")
        assert await ticket.result() == Cost(1, 60, 384)
        grant = await scheduler.on_before_message(Asked())
        assert grant is not None
        assert grant.cost == Cost(1, 70, 384)
        grant.settle()
        assert await scheduler.submit("third", "hello") == Cost(
            1, 8, 384
        )  # the last one had fewer than were counted


def test_no_more_is_remembered_than_allowed() -> None:
    """Those seen last; all others begin where the gate is."""
    estimates = Estimates(output_tokens=10, margin=1, memory=2)
    for name in "abc":
        estimates.learn(name, "", 10, Usage(1, 10, 100))
    estimates.learn("b", "", 10, Usage(1, 10, 900))
    assert len(estimates._known) == 2
    assert [estimates.estimate(name, "", 10).output_tokens for name in "abc"] == [200, 200, 100]
    assert estimates.estimate("a", "another gate", 10) == Cost(1, 10, 10)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200))
def test_the_mean_stays_among_what_was_seen(outputs: list[int]) -> None:
    estimates = Estimates(margin=1)
    for output in outputs:
        estimates.learn("a", "", 1, Usage(1, 1, output))
    assert min(outputs) <= estimates.estimate("a", "", 1).output_tokens <= max(outputs)
    assert estimates.estimate("a", "", 1).input_tokens == 1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Estimates(3), "count: must be a callable, got 3"),  # type: ignore[arg-type]
        (lambda: Estimates(output_tokens=0), "output_tokens: must be at least 1, got 0"),
        (lambda: Estimates(margin=0), "margin: must be above 0, got 0"),
        (lambda: Estimates(memory=Fraction(1)), "memory: must be a whole number"),  # type: ignore[arg-type]
        (lambda: Scheduler(estimates=4), "estimates: must be a Estimates, got 4"),  # type: ignore[arg-type]
    ],
)
def test_bad_values_are_named(make: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        make()
