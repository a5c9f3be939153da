"""Jobs that come together are judged as if each had come alone, in that order, at that instant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.policy import Policy
from scheduler.core.quota import NS, Quota, Rate
from scheduler.core.signals import Upstream
from scheduler.errors import ErrRateLimited, QuotaExceeded
from scheduler.stores.values import Answer as Said
from scheduler.stores.values import Request
from tests.conformance.record import Answer, Quotas, Record, compare
from tests.conformance.sides import to_the_end
from tests.conformance.stored import Stored, VirtualStore, opened
from tests.conformance.test_traces import bounds, few, pairs, plain, scripts, timeouts
from tests.core.play import LADDER, MS, PATIENT, START, Op, gaps, ops

pytestmark = pytest.mark.timeout(90)

fewer = settings(few, max_examples=12)
"""Each is played twice."""

TENANTS = """
    select name, zeros::text, work::text, running, waiting, due, as_of, echo,
        case when waiting > 0 then tightest end
    from waitline.tenant
"""
LINES = """
    select gate, tenant, waiting, due, start, front is null, calls, finish, period, entered, step
    from waitline.line
"""
GATES = "select name, running, due, calls, state from waitline.gate"
JOBS = """
    select tenant, row_number() over (partition by tenant order by id), state, place, turn, arrival, promised,
        head_start, deadline, max_wait, cost, session, key, digest, prompt, gate, ladder, rung, predicted,
        model, max_tokens, look, deferred
    from waitline.job
"""


"""No numbers: a job that was there already, under its key, leaves its own number unused if it comes alone."""


class Job(NamedTuple):
    """One of those that come together."""

    op: Op
    key: str | None = None
    prompt: str = '"…"'


Burst = Sequence[Job]


class AtOnce(Stored):
    """Notes what is said to jobs that come at one instant."""

    async def alone(self, jobs: Burst) -> None:
        for job in jobs:
            request = self.asked(job)
            try:
                self.said(await self.store.submit(request))
            except (ErrRateLimited, QuotaExceeded, ValueError) as error:
                self.said(error)

    async def together(self, jobs: Burst) -> None:
        for answer in await self.store.submit_together([self.asked(job) for job in jobs]):
            self.said(answer)

    def asked(self, job: Job) -> Request:
        return self.request(job.op)._replace(key=job.key, prompt=job.prompt, most_deferred=2)

    def said(self, answer: Said) -> None:
        if isinstance(answer, ErrRateLimited):
            self.note(None, ("refused", str(answer.reason), round(answer.retry_after * NS)), None)
        elif isinstance(answer, Exception):
            self.note(None, ("never", str(answer)), None)
        else:
            told: Answer = ("accepted", *(time - START for time in answer[2:5]), answer.deadline, answer.new)
            self.note(answer.id, told, answer.position)


async def play(
    store: VirtualStore, quotas: Quotas, before: Sequence[Op], bursts: Sequence[Burst], *, together: bool
) -> tuple[Record, list[list[str]]]:
    """A script, then jobs that come at once, and what is in the database then; and all goes to its end."""
    stored, rows = AtOnce(store, quotas), list[list[str]]()
    await stored.run(before)
    for burst in bursts:
        await stored.until(store.now + burst[0].op.gap)
        await (stored.together if together else stored.alone)(burst)
        rows += [sorted(map(str, await store.rows(query))) for query in (TENANTS, LINES, GATES, JOBS)]
        await stored.pump()
    offers = len(stored.ids)
    ends = [Op("settle", pick=job) for job in range(offers)]
    rest = to_the_end([Op("advance", gap=MS), *ends])
    return await (await stored.run(rest)).record(), rows


async def same(
    dsn: str,
    quotas: Quotas,
    before: Sequence[Op],
    bursts: Sequence[Burst],
    gates: Mapping[str, Upstream] | None = None,
) -> Record:
    """What comes together is answered, kept and granted as what comes alone."""
    found = []
    for together in (False, True):
        async with opened(dsn) as store:
            await store.hearing.declare(gates or {})
            found.append(await play(store, quotas, before, bursts, together=together))
    (alone, rows), (joined, others) = found
    compare(alone, joined, {**quotas, **(gates or {})}, [job.op for burst in bursts for job in burst])
    for one, other in zip(rows, others, strict=True):
        assert sorted(set(one) - set(other)) == sorted(set(other) - set(one))
    return joined


keys = st.sampled_from([None, None, "k", "l"])


def burst(**fixed: Any) -> st.SearchStrategy[list[Job]]:
    """Up to eight jobs at one instant, some of them under keys that others have used."""
    drawn: dict[str, Any] = {"policy": bounds, "timeout": timeouts, **fixed, "gap": 0}
    one = st.builds(Job, ops(["offer"], tenants=2, **drawn), keys, st.sampled_from(['"…"', '"…"', '"other"']))
    return st.tuples(gaps, st.lists(one, min_size=1, max_size=8)).map(
        lambda drawn: [drawn[1][0]._replace(op=drawn[1][0].op._replace(gap=drawn[0])), *drawn[1][1:]]
    )


async def test_a_key_that_comes_twice_is_accepted_once(dsn: str) -> None:
    first, again = Job(Op("offer"), "k"), Job(Op("offer"), "k")
    other = Job(Op("offer"), "k", '"other"')
    found = await same(dsn, {"a": Quota(Rate(1))}, [], [[Job(Op("offer")), first, again, other]])
    assert [answer[0] for answer in found.answers] == ["accepted", "accepted", "accepted", "never"]
    assert found.answers[1] == ("accepted", 0, NS, NS, 0, True)
    assert found.answers[2] == ("accepted", 0, NS, NS, 0, False)


async def test_who_joins_together_comes_to_the_gate_once(dsn: str) -> None:
    """What is expected of another tenant's job behind them is so, too."""
    burst = [Job(Op("offer", gate="x", tenant=tenant)) for tenant in "aaab"]
    gates = {"x": Upstream(Quota(Rate(1)))}
    found = await same(dsn, {"a": Quota(), "b": Quota()}, [Op("offer", gate="x")], [burst], gates)
    assert [answer[3] for answer in found.answers[1:]] == [NS, 2 * NS, 3 * NS, 2 * NS]


BEFORE = ("offer", "offer", "settle", "withdraw", "retry", "set_quota", "advance")


@fewer
@given(pairs, scripts(*BEFORE), st.lists(burst(), min_size=1, max_size=3))
async def test_jobs_that_come_together_are_judged_one_after_the_other(
    dsn: str, quotas: dict[str, Quota], before: list[Op], bursts: list[list[Job]]
) -> None:
    await same(dsn, quotas, before, bursts)


@fewer
@given(plain, st.lists(burst(head_start=0, session=None, timeout=None), min_size=1, max_size=4))
async def test_also_where_the_database_judges_itself(
    dsn: str, quotas: dict[str, Quota], bursts: list[list[Job]]
) -> None:
    unkeyed = [[Job(job.op) for job in burst] for burst in bursts]
    await same(dsn, quotas, [], unkeyed)


at_gates = st.sampled_from([PATIENT, PATIENT, Policy(max_wait=2.0), Policy.strict(), LADDER, LADDER])
shared = st.fixed_dictionaries(
    {
        name: st.builds(
            Upstream,
            st.builds(
                Quota, st.sampled_from([Rate(1), Rate(3, burst=2)]), concurrency=st.sampled_from([None, 1, 3])
            ),
        )
        for name in "xy"
    }
)


@fewer
@given(
    pairs,
    shared,
    scripts("offer", "settle", "withdraw", "hear", gates="xy", policy=at_gates),
    st.lists(burst(gates="xy", policy=at_gates), min_size=1, max_size=3),
)
async def test_also_at_gates_and_down_ladders(
    dsn: str,
    quotas: dict[str, Quota],
    gates: dict[str, Upstream],
    before: list[Op],
    bursts: list[list[Job]],
) -> None:
    await same(dsn, quotas, before, bursts, gates)
