"""How figures become verdicts, and the page."""

from typing import Any

import pytest

pytestmark = pytest.mark.repository

pytest.importorskip("aiolimiter", reason="the peers are in the group bench")


def results(ours: list[float], theirs: list[float]) -> Any:
    """Return what the case `release-cpu` would have measured."""
    from benchmarks.plan import Result

    return {
        "release-cpu": {
            "waitline": Result([{"cpu_us": value} for value in ours]),
            "ideal": Result([{"cpu_us": value} for value in theirs]),
        }
    }


def judged(ours: list[float], theirs: list[float], *, speed: bool = False) -> Any:
    """Hold `ours` against `theirs` with a floor of 2 and a goal of 1.4 (a speed: 0.6 and 1)."""
    from benchmarks.targets import Target, judge

    floor, goal = (0.6, 1.0) if speed else (2.0, 1.4)
    target = Target("P3", "CPU", "release-cpu", "cpu_us", floor, goal, against="ideal", speed=speed)
    return judge(target, results(ours, theirs))


@pytest.mark.parametrize(("ours", "state"), [(1.4, "goal"), (1.5, "PASS"), (2.0, "PASS"), (2.1, "MISS")])
def test_a_cost_is_bounded_from_above(ours: float, state: str) -> None:
    assert judged([ours], [1.0]).state == state


@pytest.mark.parametrize(("ours", "state"), [(1.0, "goal"), (1.6, "PASS"), (1.7, "MISS")])
def test_a_speed_is_bounded_from_below(ours: float, state: str) -> None:
    assert judged([ours], [1.0], speed=True).state == state


def test_ratios_are_taken_repeat_by_repeat() -> None:
    assert judged([1.5, 15.0, 1.5], [1.0, 10.0, 1.0]).value == 1.5


def test_a_measurement_that_failed_has_missed_its_floor() -> None:
    assert judged([], [1.0]).missed


def test_a_case_that_was_not_asked_for_is_not_judged() -> None:
    from benchmarks.targets import TARGETS, judge

    assert {judge(target, {}).state for target in TARGETS} == {"not measured"}


def test_every_target_names_a_case_a_subject_and_a_figure_that_exist() -> None:
    from benchmarks.cases import CASES
    from benchmarks.targets import TARGETS

    for target in TARGETS:
        case = CASES[target.case]
        assert {target.subject, target.against or target.subject} <= set(case.judged), target
        assert target.key in {column.key for column in case.columns}, target


def test_one_bad_repeat_is_one_too_many() -> None:
    from benchmarks.cases import Column
    from benchmarks.plan import Result

    result = Result([{"early": 0}, {"early": 1}, {"early": 0}])
    assert result.figure(Column("early", "early", worst=True)) == 1
    assert result.figure(Column("early", "early")) == 0


def test_the_generated_part_of_the_page_is_exchanged_and_nothing_else() -> None:
    from benchmarks.report import BEGIN, END, replaced

    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replaced(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    with pytest.raises(ValueError, match="markers"):
        replaced("no markers", "new")


def test_the_page_has_a_place_for_the_tables() -> None:
    from benchmarks.__main__ import PAGE
    from benchmarks.report import replaced

    assert "new" in replaced(PAGE.read_text(encoding="utf-8"), "new")


def test_slots_and_errors() -> None:
    from benchmarks.measure import NS, errors, pacing, percentile, slot

    assert [slot(0, 2, 2, number) for number in range(4)] == [0, 0, NS // 2, NS]
    assert errors([5, NS // 2 + 7], 0, 2, 1, -1) == [5, 7]
    log = [(0, 0), (NS // 2 - 1, 2), (NS, 1)]
    row = pacing(log, 3, 0, 2, 1, -1)
    assert (row["early"], row["inversions"], row["total"]) == (1, 1, 1.0)
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([1], 0.99) == 1
    assert percentile([], 0.5) is None


def test_the_ideal_keeps_its_schedule_in_virtual_time() -> None:
    import asyncio

    from benchmarks.ideal import Bucket, Ideal
    from scheduler.testing.virtual import VirtualClock, run_virtual

    async def main() -> list[float]:
        ideal = Ideal(False, VirtualClock().now)
        ideal.buckets["acme"] = Bucket(2, 1, 5)
        times: list[float] = []

        async def one() -> None:
            await ideal.acquire("acme")
            times.append(asyncio.get_running_loop().time())

        await asyncio.gather(*(one() for _ in range(8)))
        return times

    assert run_virtual(main()) == [0, 0, 0, 0, 0, 0.5, 1, 1.5]
