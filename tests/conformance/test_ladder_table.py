"""The ladder's table in both stores: the rung that a new job takes, by how long it would wait."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.core.policy import Policy, Rung
from scheduler.core.quota import NS, Cost, Quota, Rate
from scheduler.core.signals import Answer, Signal, Upstream
from tests.conformance.sides import same
from tests.core.play import PATIENT, Op
from tests.core.test_ladder import SHORT, SHORT_LARGE, SMALL, USUAL

SLOW = Upstream(Quota(Rate(1, burst=1)))
POLICY = Policy(max_wait=None, ladder=[Rung(10, model="small"), Rung(30, max_tokens=256)])


@pytest.mark.parametrize(
    ("large", "small", "output", "expected"),
    [
        # seconds of work at the large gate, at the small one, output tokens of the job
        (0, 0, 0, USUAL),
        (9, 0, 0, USUAL),
        (10, 0, 0, SMALL),
        (40, 0, 0, SMALL),
        (40, 29, 0, SMALL),
        (40, 30, 0, SHORT),
        (40, 30, 1000, SHORT),
        (40, 30, 256, SMALL),
        (40, 30, 100, SMALL),
        (15, 15, 0, USUAL),
        (15, 20, 0, USUAL),
        (35, 50, 0, SHORT_LARGE),
    ],
)
async def test_the_rung_that_a_new_job_takes(
    dsn: str, large: int, small: int, output: int, expected: Any
) -> None:
    full = [Op("offer", gate="large"), Op("offer", gate="small")]
    work = ["large"] * (large - 1) + ["small"] * (small - 1)
    lines = [Op("offer", gate=gate, policy=PATIENT) for gate in work]
    room = [] if large else [Op("advance", gap=NS)]
    job = Op("offer", gate="large", policy=POLICY, cost=Cost(1, 0, output))
    script = [*full, *lines, *room, job]
    gates = {"large": SLOW, "small": SLOW}
    found = await same(dsn, {"a": Quota()}, script, gates=gates, long=120 * NS, ties=True)
    assert found.served[len(full) + len(lines)] == expected[:4]


async def test_a_job_that_waits_takes_its_rung_later(dsn: str) -> None:
    """Its wait grew after submit: the gate paused for a while."""
    policy = Policy(max_wait=None, ladder=[Rung(10, model="small")])
    limited = Signal(Answer.RATE_LIMITED, 60.0)
    script = [Op("offer", gate="large"), *[Op("offer", gate="large", policy=PATIENT)] * 3]
    script += [Op("offer", gate="large", policy=policy), Op("hear", gap=NS // 2, signal=limited)]
    gates = {"large": SLOW, "small": SLOW}
    found = await same(dsn, {"a": Quota()}, script, gates=gates, long=120 * NS, ties=True)
    assert found.served[4] == ("small", 1, "small", None)
