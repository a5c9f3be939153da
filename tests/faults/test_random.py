"""A short random session: see ``python -m tests.faults`` for a long one."""

from __future__ import annotations

import pytest

from tests.faults.points import POINTS
from tests.faults.session import play
from tests.faults.stage import Machine
from tests.faults.tally import Tally

pytestmark = pytest.mark.timeout(60)


async def test_some_deaths_at_random(server: Machine) -> None:
    tally = Tally()
    await play(server, 1, 0, 6, tally)
    assert tally.killed >= 5
    assert sum(map(tally.in_flight, POINTS)) >= 4
