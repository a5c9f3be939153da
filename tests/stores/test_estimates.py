"""Estimates over a store: what a call is charged that names no cost, in every process the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from scheduler import (
    Cost,
    DeadlineExceeded,
    ErrRateLimited,
    Estimates,
    Job,
    JobFailed,
    Outage,
    Policy,
    Quota,
    QuotaExceeded,
    Rate,
    Scheduler,
    SchedulerClosed,
    UpstreamError,
    Usage,
)
from scheduler.core import learning
from scheduler.runtime.grant import Cover
from scheduler.stores.postgres import PostgresStore, estimating
from scheduler.stores.postgres.estimating import Lesson
from scheduler.stores.values import DONE, Ended, Grown
from scheduler.worker import Worker
from tests.runtime.test_estimates import BROKEN, Breaking
from tests.stores.callers import rows
from tests.stores.outages import Mortal, fall, mortal, mortal_server, rise, watched
from tests.stores.working import Run

__all__ = ["mortal", "mortal_server"]

FREE, PLAIN = Quota(), Quota(Rate(1000, burst=1000))
WIDE = Quota(input_tokens=Rate.per_minute(60_000), output_tokens=Rate.per_minute(60_000))
SLOW = Quota(
    Rate(1, per=3600, burst=100),
    input_tokens=Rate(1, per=3600, burst=10_000),
    output_tokens=Rate(1, per=3600, burst=10_000),
)
TIGHT = Quota(input_tokens=Rate(10**6, burst=900), output_tokens=Rate(10**6, burst=60))
LEARNED = "select tenant, gate, surplus, output from waitline.learned where output is not null order by 1, 2"
HUNDRED = "x" * 372
"""A hundred tokens, as they are counted."""


class Spending:
    """A handler whose calls use this, one after the other, the last one for ever."""

    def __init__(self, *usages: Usage | None) -> None:
        self.left = list(usages)
        self.costs: list[Cost] = []

    async def __call__(self, job: Job) -> None:
        self.costs.append(job.cost)
        usage = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if usage is not None:
            job.settle(usage)


@asynccontextmanager
async def metered(dsn: str, handler: Run, quota: Quota = WIDE, **settings: Any) -> AsyncIterator[Scheduler]:
    """A scheduler and a worker, with a store each."""
    worker = Worker(handler, PostgresStore(dsn))
    made = Scheduler(store=PostgresStore(dsn), quotas=quota, **settings)
    async with made as scheduler, asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        try:
            yield scheduler
        finally:
            worker.stop()
            worker.stop()


def message(tenant: str = "acme", prompt: Any = HUNDRED) -> Any:
    return SimpleNamespace(tenant=tenant, prompt=prompt)


async def ask(scheduler: Scheduler, **what: Any) -> Any:
    """The grant of a message through the hook."""
    grant = await scheduler.on_before_message(message(**what))
    assert grant is not None
    return grant


# --- what is charged, and learned -----------------------------------------------------------------------


async def test_input_is_counted_and_output_learned_for_each_tenant(dsn: str) -> None:
    """The same numbers as in memory, see tests/runtime/test_estimates.py."""
    handler = Spending(Usage(1, 207, 80), Usage(1, 207, 80), Usage(1, 207, 160))
    async with metered(dsn, handler) as scheduler:
        for _ in range(4):
            await scheduler.submit("acme", "a" * 400)
        ticket = await scheduler.enqueue("other", "a" * 800)
        await ticket.result()
    assert handler.costs == [
        Cost(1, 107, 256),
        Cost(1, 207, 120),
        Cost(1, 207, 120),
        Cost(1, 207, 135),
        Cost(1, 307, 148),
    ]


@pytest.mark.parametrize("gates", [None, WIDE, {"m": TIGHT}], ids=["no gate", "gate", "small gate"])
@pytest.mark.parametrize("seed", range(3))
async def test_the_same_jobs_cost_the_same_in_memory_and_over_a_store(
    dsn: str, seed: int, gates: Any
) -> None:
    """Jobs and callers of several tenants, with and without costs and usages; two processes take turns."""
    draw = random.Random(seed)
    script = [
        (
            draw.choice(["hook", "submit", "submit"]),
            draw.choice("abc"),
            "x" * draw.randrange(1, 900),
            draw.choice([None, None, None, Cost(1, 5, 6)]),
            draw.choice([None, Usage(1, draw.randrange(900), draw.choice([0, draw.randrange(1, 90)]))]),
        )
        for _ in range(25)
    ]
    quotas = {"a": WIDE, "b": PLAIN, "c": TIGHT}
    many = Policy(max_wait=None)

    async def play(schedulers: list[Scheduler], costs: list[Cost], usages: list[Usage | None]) -> None:
        for number, (kind, tenant, prompt, cost, usage) in enumerate(script):
            scheduler = schedulers[number % len(schedulers)]
            if kind == "submit":
                usages.append(usage)
                await scheduler.submit(tenant, prompt, cost=cost)
            else:
                grant = await ask(scheduler, tenant=tenant, prompt=prompt)
                costs.append(grant.cost)
                grant.settle(usage)
                await scheduler.statistics(tenant)  # which waits until that is recorded

    def handler_of(costs: list[Cost], usages: list[Usage | None]) -> Run:
        async def handler(job: Job) -> None:
            costs.append(job.cost)
            if (usage := usages.pop()) is not None:
                job.settle(usage)

        return handler

    options: dict[str, Any] = {"quotas": quotas, "gates": gates, "policy": many}
    here: tuple[list[Cost], list[Usage | None]] = [], []
    async with Scheduler(handler_of(*here), **options) as scheduler:
        await play([scheduler], *here)
    there: tuple[list[Cost], list[Usage | None]] = [], []
    other = Scheduler(store=PostgresStore(dsn), **options)
    options.pop("quotas")
    async with metered(dsn, handler_of(*there), quotas, **options) as scheduler, other:  # type: ignore[arg-type]
        await play([scheduler, other], *there)
    assert there[0] == here[0]
    assert len(set(here[0])) > 5


async def test_what_was_reserved_gives_way_to_what_was_used(dsn: str) -> None:
    """In the buckets of the tenant and of the gate, to whichever side."""
    handler = Spending(Usage(1, 50, 900), Usage(1, 300, 7), Usage(1, 0, 0), None)
    async with metered(dsn, handler, SLOW, gates={"m": SLOW}) as scheduler:
        for _ in range(4):
            await scheduler.submit("acme", HUNDRED)
        own = await scheduler.current_levels("acme")
        gate = (await scheduler.statistics()).gates["m"].levels
    last = handler.costs[-1]
    assert {name: int(level) for name, level in gate.items()} == {
        "requests": 100 - 4,
        "input_tokens": 10_000 - 350 - last.input_tokens,
        "output_tokens": 10_000 - 907 - last.output_tokens,
    }
    assert {name: int(held) for name, (_, _, held) in own.items()} == {
        name: int(level) for name, level in gate.items()
    }


@pytest.mark.parametrize("gates", [None, {"m": SLOW}], ids=["no gate", "gate"])
@pytest.mark.parametrize("way", ["job", "caller"])
async def test_output_beyond_its_estimate_is_charged_while_it_comes(dsn: str, gates: Any, way: str) -> None:
    """Once, in steps of a quarter; the end charges what was used, whatever was charged meanwhile."""
    levels: list[int] = []

    async def grow(turn: Any, store: Any) -> None:
        for produced in (50, 125, 126, 300, 200, 301, 376):
            turn.grow(produced)
            await store.hearing.noted()
            own = 10_000 - int((await scheduler.current_levels("acme"))["output_tokens"][2])
            if gates is not None:
                known = (await scheduler.statistics()).gates["m"].levels
                assert 10_000 - int(known["output_tokens"]) == own
            levels.append(own)
        turn.settle(Usage(1, 5, 350))

    async def handler(job: Job) -> None:
        await grow(job, job.store)  # type: ignore[attr-defined]

    async with metered(dsn, handler, SLOW, gates=gates) as scheduler:
        if way == "job":
            await scheduler.submit("acme", "hello", cost=Cost(1, 0, 100))
        else:
            async with scheduler.admit("acme", cost=Cost(1, 0, 100)) as grant:
                await grow(grant, scheduler.store)  # type: ignore[attr-defined]
        assert levels == [100, 100, 126, 300, 300, 300, 376]
        assert int((await scheduler.statistics("acme")).levels["output_tokens"]) == 10_000 - 350


@pytest.mark.parametrize("gates", [None, {"m": SLOW}], ids=["no gate", "gate"])
@pytest.mark.parametrize(("refused", "usage", "own", "shared"), BROKEN)
async def test_a_repeat_reserves_what_the_first_try_did(
    dsn: str, gates: Any, refused: bool, usage: Usage | None, own: int, shared: int
) -> None:
    """As in memory, see tests/runtime/test_estimates.py."""
    handler = Breaking(refused, usage)
    async with metered(dsn, handler, SLOW, gates=gates) as scheduler:
        assert await scheduler.submit("acme", "hello", cost=Cost(1, 0, 100)) == "answer"
        assert handler.costs == [Cost(1, 0, 100)] * 2
        assert int((await scheduler.statistics("acme")).levels["output_tokens"]) == 10_000 - own
        if gates is not None:
            known = (await scheduler.statistics()).gates["m"].levels
            assert int(known["output_tokens"]) == 10_000 - shared


@pytest.mark.parametrize("where", ["quota", "gates"])
async def test_a_long_answer_that_broke_off_is_no_reason_never_to_run(dsn: str, where: str) -> None:
    """Neither for its next try nor, once it has failed, for whoever tries it again."""
    limits: Any = {where: Quota(output_tokens=Rate(10**6, burst=200))}
    limits |= {"gates": None} if where == "quota" else {"quota": FREE}
    handler, failed = Breaking(), asyncio.Event()

    async def work(job: Job) -> str:
        if job.prompt == "fails" and not failed.is_set():
            failed.set()
            job.grow(600)
            await job.store.hearing.noted()  # type: ignore[attr-defined]
            raise LookupError
        return await handler(job)

    async with metered(dsn, work, **limits) as scheduler:
        assert await scheduler.submit("acme", "hello", cost=Cost(1, 0, 100)) == "answer"
        ticket = await scheduler.enqueue("acme", "fails", cost=Cost(1, 0, 100))
        with pytest.raises(JobFailed):
            await ticket.result()
        assert await scheduler.store.revive(int(ticket.id))  # type: ignore[attr-defined]
        again = await scheduler.ticket(ticket.id, tenant="acme")
        assert await again.result() == "answer"


async def test_who_waits_hears_of_output_that_was_not_foreseen(dsn: str) -> None:
    """The next job is expected later, from then on."""
    quota = Quota(output_tokens=Rate(1, burst=200))
    told: list[float] = []

    async def handler(job: Job) -> None:
        if job.prompt == "long":
            short = await scheduler.enqueue("acme", "short", cost=Cost(1, 0, 150))
            job.grow(600)
            await job.store.hearing.noted()  # type: ignore[attr-defined]
            later = await scheduler.ticket(short.id, tenant="acme")
            told.extend([short.wait, later.expected])
            later.cancel()

    async with metered(dsn, handler, quota) as scheduler:
        await scheduler.submit("acme", "long", cost=Cost(1, 0, 200))
    assert 149 < told[0] <= 150
    assert 549 < told[1] <= 550


async def test_output_that_was_not_foreseen_refuses_who_would_wait_too_long(dsn: str) -> None:
    quota = Quota(output_tokens=Rate(1, burst=200))
    patient = asyncio.Event()

    async def handler(job: Job) -> None:
        job.grow(600)
        await patient.wait()

    async with metered(dsn, handler, quota) as scheduler:
        long = await scheduler.enqueue("acme", "long", cost=Cost(1, 0, 200))
        with pytest.raises(ErrRateLimited, match=r"retry after 5..\.") as refused:
            await scheduler.submit("acme", "short", cost=Cost(1, 0, 150), policy=Policy(max_wait=300))
        assert refused.value.reason == "max_wait"
        patient.set()
        await long.result()


async def test_a_try_that_lost_its_job_charges_nothing_more(dsn: str) -> None:
    async with PostgresStore(dsn) as store, Scheduler(store=store, quotas=SLOW) as scheduler:
        ticket = await scheduler.enqueue("acme", "hello", cost=Cost(1, 0, 100))
        (claim,) = (await store.claim("worker", 1)).claims  # type: ignore[union-attr]
        for tries in (claim.tries + 1, claim.tries):
            store.hearing.grow(Grown(int(ticket.id), "acme", tries, 500 * tries))
            await store.hearing.noted()
        assert int((await scheduler.statistics("acme")).levels["output_tokens"]) == 10_000 - 500
        await store.settle(Ended(claim.id, "acme", claim.tries, DONE))
        store.hearing.grow(Grown(claim.id, "acme", claim.tries, 900))
        await store.hearing.noted()
        assert int((await scheduler.statistics("acme")).levels["output_tokens"]) == 10_000 - 500


async def test_processes_learn_together_and_what_was_learned_survives(dsn: str) -> None:
    """By jobs and by callers; who is new begins where the gate is."""
    handler = Spending(Usage(1, 150, 80))
    async with metered(dsn, handler) as one, Scheduler(store=PostgresStore(dsn), quotas=WIDE) as other:
        await one.submit("acme", HUNDRED)
        grant = await ask(other)
        assert grant.cost == Cost(1, 150, 120)
        grant.settle(Usage(1, 150, 160))
        await other.statistics("acme")  # which waits until that is recorded
        assert (await ask(one)).cost == Cost(1, 150, 135)
        assert (await ask(one, tenant="new")).cost == Cost(1, 150, 135)
    assert await rows(dsn, LEARNED) == [("", "", 50, 90), ("acme", "", 50, 90)]
    async with Scheduler(store=PostgresStore(dsn), quotas=WIDE) as later:
        assert (await ask(later)).cost == Cost(1, 150, 135)


async def test_each_gate_has_means_of_its_own(dsn: str) -> None:
    handler = Spending(Usage(1, 100, 40))
    async with metered(dsn, handler, FREE, gates={"x": WIDE, "y": WIDE, "free": PLAIN}) as scheduler:
        for gate in "xy":
            await scheduler.submit("acme", HUNDRED, gate=gate)
        await scheduler.submit("acme", HUNDRED, gate="x")
        await scheduler.submit("acme", HUNDRED, gate="free")
    assert handler.costs == [Cost(1, 100, 256), Cost(1, 100, 256), Cost(1, 100, 60), Cost()]
    assert [row[:2] for row in await rows(dsn, LEARNED)] == [
        ("", "x"),
        ("", "y"),
        ("acme", "x"),
        ("acme", "y"),
    ]


async def test_a_learned_estimate_never_refuses_a_job_for_ever(dsn: str) -> None:
    """Only what was counted is a reason never to run, at the tenant's limits and at the gate's."""
    small = Quota(input_tokens=Rate(10_000, burst=200), output_tokens=Rate(10_000, burst=100))
    handler = Spending(Usage(1, 5000, 5000))
    async with metered(dsn, handler, small) as scheduler:
        for _ in range(2):
            await scheduler.submit("acme", "hello")
        with pytest.raises(QuotaExceeded, match="cost 257 can never fit input_tokens of burst 200"):
            await scheduler.submit("acme", "x" * 1000)
    assert handler.costs == [Cost(1, 9, 100), Cost(1, 200, 100)]
    async with metered(dsn, handler, FREE, gates={"m": small}) as scheduler:
        for _ in range(2):
            await scheduler.submit("acme", "hello")
    assert handler.costs[2:] == [Cost(1, 9, 100), Cost(1, 200, 100)]


async def test_a_cost_that_is_given_is_taken_and_teaches_nothing(dsn: str) -> None:
    """A caller of `admit` counts as one request, as it does in memory."""
    handler = Spending(Usage(1, 100, 100))
    async with metered(dsn, handler) as scheduler:
        await scheduler.submit("acme", "hello", cost=Cost(1, 5, 6))
        await scheduler.submit("acme", "hello", cost=Cost())
        async with scheduler.admit("acme") as grant:
            assert grant.cost == Cost()
            grant.settle(Usage(1, 100, 100))
        assert await rows(dsn, LEARNED) == []
        await scheduler.submit("acme", "hello")
    assert handler.costs == [Cost(1, 5, 6), Cost(), Cost(1, 9, 256)]
    assert await rows(dsn, "select counted from waitline.job order by id") == [(None,), (None,), (9,)]


async def test_a_quote_is_over_an_estimate(dsn: str) -> None:
    """Of a prompt of no length; asking for it leaves no trace."""
    slow = Quota(output_tokens=Rate(1, burst=300))
    async with Scheduler(store=PostgresStore(dsn), quotas=slow) as scheduler:
        assert (await scheduler.quote("acme")).wait == 0
        await ask(scheduler)
        assert 205 < (await scheduler.quote("acme")).wait <= 2 * 256 - 300
        assert (await scheduler.quote("acme", cost=Cost(1, 0, 10))).wait == 0


async def test_absurd_usage_is_learned_as_far_as_a_cost_can_say(dsn: str) -> None:
    """Or nobody could submit anything for that tenant any more."""
    loose = Quota(Rate(1000, burst=100), input_tokens=Rate(10**9, burst=10**9))
    handler = Spending(Usage(1, 5, 10**15), Usage(1, 5, 5))
    async with metered(dsn, handler, loose) as scheduler:
        for _ in range(2):
            await scheduler.submit("acme", "hello")
    assert handler.costs[1].output_tokens == 1.5 * 10**15


# --- who counts, and when -------------------------------------------------------------------------------


def never(prompt: Any) -> int:
    raise AssertionError("asked")


async def test_nobody_is_counted_where_only_requests_are_limited(dsn: str) -> None:
    handler = Spending(Usage(1, 100, 100))
    async with metered(dsn, handler, PLAIN, estimates=Estimates(never)) as scheduler:
        await scheduler.submit("acme", "hello")
        await (await scheduler.enqueue("acme", "hello", priority=1)).result()
        assert (await ask(scheduler)).cost == Cost()
    assert handler.costs == [Cost(), Cost()]
    assert await rows(dsn, LEARNED) == []


@pytest.mark.parametrize("slow", [False, True], ids=["at once", "awaited"])
async def test_a_quota_that_another_process_has_set_is_metered(dsn: str, slow: bool) -> None:
    """A guess that was wrong costs one more question, and no mistake: submit, hook and own transaction."""
    asked: list[Any] = []

    def count(prompt: Any) -> int:
        asked.append(prompt)
        return len(prompt)

    async def count_slowly(prompt: Any) -> int:
        await asyncio.sleep(0)
        return count(prompt)

    estimates = Estimates(count_slowly if slow else count)
    handler = Spending(Usage(1, 5, 256))
    async with metered(dsn, handler, PLAIN, estimates=estimates) as scheduler:
        await scheduler.submit("a", "one")  # it takes itself to know the quotas of these
        await scheduler.submit("b", "two")
        await scheduler.submit("c", "three")
        async with Scheduler(store=PostgresStore(dsn), quotas=PLAIN) as other:
            for tenant in "abc":
                await other.set_quota(tenant, WIDE)
        assert asked == []
        await scheduler.submit("a", "four")
        assert (await ask(scheduler, tenant="b", prompt="five.")).cost == Cost(1, 6, 384)
        connection = await asyncpg.connect(dsn)
        try:
            async with connection.transaction():
                ticket = await scheduler.enqueue("c", "sixsix", connection=connection)
            await ticket.result()
        finally:
            await connection.close()
    assert asked == ["four", "five.", "sixsix"]
    assert handler.costs[3:] == [Cost(1, 4, 256), Cost(1, 7, 384)]


async def test_a_gate_that_another_process_has_declared_is_metered(dsn: str) -> None:
    handler = Spending(Usage(1, 100, 10))
    other = Scheduler(store=PostgresStore(dsn), gates={"m": WIDE})
    async with metered(dsn, handler, PLAIN) as scheduler, other:
        await scheduler.submit("acme", HUNDRED, policy=Policy(max_wait=None), session="the general way")
    assert handler.costs == [Cost(1, 100, 256)]


async def test_counting_may_take_a_while_and_fail(dsn: str) -> None:
    """By submit, enqueue and the hook; the cheap count stands in when the API cannot say."""
    answers: list[int | Exception] = [50, 60, 70, UpstreamError("overloaded", 529)]

    async def count(prompt: Any) -> int:
        await asyncio.sleep(0)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    handler = Spending(Usage(1, 50, 256))
    async with metered(dsn, handler, estimates=Estimates(count)) as scheduler:
        await scheduler.submit("acme", "hello")
        await (await scheduler.enqueue("other", "hello")).result()
        assert (await ask(scheduler)).cost == Cost(1, 70, 384)
        await scheduler.submit("third", "hello")
    assert handler.costs == [Cost(1, 50, 256), Cost(1, 60, 384), Cost(1, 8, 384)]


async def test_a_timeout_bounds_the_count_too_and_the_end_does(dsn: str) -> None:
    forever = asyncio.Event()

    async def count(prompt: Any) -> int:
        await forever.wait()
        return 5

    async with Scheduler(store=PostgresStore(dsn), quotas=WIDE, estimates=Estimates(count)) as scheduler:
        with pytest.raises(DeadlineExceeded, match=r"timeout of 0\.01s passed"):
            await scheduler.submit("acme", "hello", timeout=0.01)
        with pytest.raises(DeadlineExceeded, match=r"timeout of 0\.01s passed"):
            await scheduler.enqueue("acme", "hello", timeout=0.01)
        late = asyncio.create_task(scheduler.enqueue("acme", "hello"))
        await asyncio.sleep(0)
    forever.set()
    with pytest.raises(SchedulerClosed):
        await late
    assert await rows(dsn, "select id from waitline.job") == []


async def test_a_later_message_of_a_run_is_estimated_at_the_gate_of_the_run(dsn: str) -> None:
    costs: list[Cost] = []

    async def handler(job: Job) -> None:
        for _ in range(2):
            grant = await scheduler.on_before_message(message())
            if grant is not None and not isinstance(grant, Cover):
                costs.append(grant.cost)
                grant.settle(Usage(1, 120, 40))

    store = PostgresStore(dsn)
    worker = Worker(handler, store)
    gates = {"x": Quota(concurrency=1), "y": WIDE}
    async with Scheduler(store=store, gates=gates) as scheduler, asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        await scheduler.submit("acme", "hello", gate="y")
        await scheduler.submit("acme", "hello", gate="y")
        worker.stop()
    assert costs == [Cost(1, 100, 256), Cost(1, 120, 60)]


# --- bounds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gates", [None, {"m": PLAIN}], ids=["no gate", "gate"])
async def test_what_was_learned_of_a_tenant_is_forgotten_with_it(dsn: str, gates: Any) -> None:
    """At once; and what a call taught that was still under way goes with the tenant's row."""
    store = PostgresStore(dsn)
    async with Scheduler(store=store, quotas=WIDE, gates=gates) as scheduler:
        for tenant in ("acme", "other"):
            (await ask(scheduler, tenant=tenant)).settle(Usage(1, 100, 100))
        running = await ask(scheduler)
        await scheduler.statistics()  # which waits until all that ended is recorded
        assert {row[0] for row in await rows(dsn, LEARNED)} == {"", "acme", "other"}
        await scheduler.forget("acme")
        assert {row[0] for row in await rows(dsn, LEARNED)} == {"", "other"}
        running.settle(Usage(1, 0, 1))
        await scheduler.statistics()
        assert {row[0] for row in await rows(dsn, LEARNED)} == {"", "acme", "other"}
        while await rows(dsn, "select from waitline.tenant where name = 'acme'"):
            await store.prune()  # until its buckets are full
        assert {row[0] for row in await rows(dsn, LEARNED)} == {"", "other"}


async def test_where_there_is_no_gate_no_lesson_is_lost_to_another_process(dsn: str) -> None:
    """Two transactions that teach at once: the second one goes on from what the first one has committed."""
    lessons = [Lesson("a", "", 10, Usage(1, 30, 80)), Lesson("b", "", 10, Usage(1, 10, 160))]
    first, second = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        before = first.transaction()
        await before.start()
        await estimating.learn(first, lessons[:1])
        async with second.transaction():
            waits = asyncio.create_task(estimating.learn(second, lessons[1:]))
            waiting = f"select 1 from pg_locks where not granted and pid = {second.get_server_pid()}"
            while not await rows(dsn, waiting):
                pass
            await before.commit()
            await waits
    finally:
        await first.close()
        await second.close()
    _, told = learning.learn(None, None, 10, lessons[0].usage)
    _, told = learning.learn(None, told, 10, lessons[1].usage)
    assert (await rows(dsn, LEARNED))[0] == ("", "", *told)


async def test_while_the_store_is_down_callers_are_charged_estimates_too(mortal: Mortal) -> None:
    """By the first guess, or what was learned in this process since it is."""
    async with watched(mortal.dsn, Outage.admit(0.5, patience=0.3), SLOW) as (scheduler, ears):
        (await ask(scheduler)).settle()
        await scheduler.statistics("acme")  # which waits until that is recorded
        await fall(scheduler, ears, mortal)
        for output in (256, 60):
            grant = await ask(scheduler)
            assert grant.cost == Cost(1, 100, output)
            grant.settle(Usage(1, 100, 40))
        levels = await scheduler.current_levels("acme")
        assert int(levels["output_tokens"][2]) == 5000 - 80
        await rise(scheduler, ears, mortal)
        levels = await scheduler.current_levels("acme")
        assert int(levels["output_tokens"][2]) == 10_000 - 256 - 80
