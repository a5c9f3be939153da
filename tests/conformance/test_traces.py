"""Drawn scripts: whatever is asked of it, the store decides what the engine in memory decides."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scheduler.core.policy import Policy
from scheduler.core.quota import Quota
from tests.conformance.processes import Claimer
from tests.conformance.sides import same
from tests.core.play import MS, PATIENT, Op, ops, quotas, rates

few = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink a short script takes minutes
)

bounds = st.sampled_from(
    [
        PATIENT,
        PATIENT,
        Policy(max_wait=None, max_queue=2),
        *(Policy(max_wait=wait) for wait in (0.27, 0.77, 1.27, 2.27, 5.27)),
        Policy.strict(),
    ]
)
"""Several in one line, and none that a wait for a slot, of which each side expects its own, just meets."""

unbounded = st.sampled_from([PATIENT, PATIENT, PATIENT, Policy(max_wait=None, max_queue=2), Policy.strict()])
"""Whose waits are judged once: of a job whose backoff is over, a late claim judges later than that."""

impatient = st.sampled_from([Policy(max_wait=1.0), Policy(max_wait=2.0), Policy.strict()])

timeouts = st.one_of(st.none(), st.none(), st.integers(10, 40).map(lambda n: n * 100 * MS))
"""Longer than the time for which a slot is expected to be held by all who are drawn."""

pairs = st.fixed_dictionaries({"a": quotas, "b": quotas})
"""What two tenants may use."""

plain = st.fixed_dictionaries({name: st.builds(Quota, rates) for name in "ab"})

LATE = 40 * MS
"""Within the 50 ms for which a late claim moves no slot."""


def scripts(*kinds: str, **fixed: Any) -> st.SearchStrategy[list[Op]]:
    """A few operations on two tenants."""
    drawn: dict[str, Any] = {"policy": bounds, "timeout": timeouts, **fixed}
    return st.lists(ops(kinds, tenants=2, **drawn), min_size=1, max_size=10)


EVERYTHING = ("offer", "offer", "offer", "settle", "withdraw", "retry", "set_quota", "advance")


@few
@given(pairs, scripts(*EVERYTHING))
async def test_the_store_decides_what_the_engine_decides(
    dsn: str, quotas: dict[str, Quota], script: list[Op]
) -> None:
    await same(dsn, quotas, script)


@few
@given(pairs, scripts("offer", "offer", "offer", "look", "settle", "withdraw", "retry", "set_quota"))
async def test_who_waits_expects_the_same(dsn: str, quotas: dict[str, Quota], script: list[Op]) -> None:
    """Whatever made it later, or sooner, than it was promised."""
    await same(dsn, quotas, [*script, *(Op("look", pick=job) for job in range(len(script)))])


@few
@given(
    pairs,
    scripts("offer", policy=impatient, head_start=0, session=None),
)
async def test_answers_are_the_same_when_nothing_gets_worse(
    dsn: str, quotas: dict[str, Quota], script: list[Op]
) -> None:
    await same(dsn, quotas, script)


@few
@given(pairs, scripts(*EVERYTHING), st.integers(1, 3))
async def test_however_few_jobs_a_claim_takes_the_slots_are_the_same(
    dsn: str, quotas: dict[str, Quota], script: list[Op], slots: int
) -> None:
    await same(dsn, quotas, script, slots=slots)


@few
@given(pairs, scripts(*EVERYTHING, policy=unbounded), st.integers(1, LATE))
async def test_late_claims_change_no_slot(
    dsn: str, quotas: dict[str, Quota], script: list[Op], late: int
) -> None:
    await same(dsn, quotas, script, late=late)


@pytest.mark.parametrize("claimers", [2, 4, 8])
@few
@given(quotas=pairs, script=scripts(*EVERYTHING))
async def test_claims_that_race_change_no_slot(
    dsn: str, claimers: int, quotas: dict[str, Quota], script: list[Op]
) -> None:
    await same(dsn, quotas, script, claimers=claimers, slots=2)


@pytest.fixture(params=[1, 2, 4, 8])
def processes(dsn: str, request: pytest.FixtureRequest) -> Iterator[list[Claimer]]:
    """So many workers of the database, each a process of its own."""
    claimers = [Claimer(dsn) for _ in range(request.param)]
    yield claimers
    for claimer in claimers:
        claimer.close()


@settings(few, max_examples=10)
@given(quotas=pairs, script=scripts(*EVERYTHING))
async def test_claims_of_worker_processes_change_no_slot(
    dsn: str, processes: list[Claimer], quotas: dict[str, Quota], script: list[Op]
) -> None:
    await same(dsn, quotas, script, processes=processes, slots=2)


@few
@given(plain, scripts("offer", policy=PATIENT, head_start=0, session=None, timeout=None))
async def test_the_promise_is_kept_to_the_nanosecond(
    dsn: str, quotas: dict[str, Quota], script: list[Op]
) -> None:
    record = await same(dsn, quotas, script)
    arrivals = list(accumulate(op.gap for op in script))
    granted = {job: slot for grants in record.grants.values() for job, slot in grants}
    for job, answer in enumerate(record.answers):
        assert answer[0] == "never" or answer[1] == granted[job] - arrivals[job]
