"""The line against a sorted list."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.account import shape_of
from scheduler.core.entry import RUN_BITS, SEQUENCE_BITS, Entry
from scheduler.core.gate import Gate
from scheduler.core.line import BLOCK, Line
from scheduler.core.quota import NS, Cost, Quota, Rate
from scheduler.core.tenant import Tenant
from tests.core.play import PATIENT


def line_of(quota: Quota) -> Line:
    """An empty line of one tenant at one gate."""
    return Line(Tenant("a", shape_of(quota), 0), Gate("", Quota(), 0))


def entry_at(
    now: int, sequence: int, cost: int = 1, head_start: int = 0, holder: Entry | None = None
) -> Entry:
    """A job with its key."""
    entry = Entry(PATIENT, Cost(cost), head_start=head_start, holder=holder)
    entry.place_in_order(now, sequence)
    return entry


moves = st.lists(
    st.tuples(st.sampled_from(["push", "push", "push", "front", "remove", "run"]), st.integers(0, 10**6)),
    max_size=120,
)


@settings(max_examples=60)
@given(moves, st.integers(0, 3 * BLOCK))
def test_a_line_is_a_sorted_list(script: list[tuple[str, int]], crowd: int) -> None:
    """Whatever joins and leaves, from wherever: order, head, places and sums are those of a sorted list."""
    line, model, sequence = line_of(Quota(Rate(1, burst=9))), [], 0
    for number in range(crowd):
        sequence += 1
        entry = entry_at(NS + number, sequence)
        line.push(entry)
        model.append(entry)
    for what, draw in script:
        sequence += 1
        if what == "push":
            entry = entry_at(NS + draw, sequence, 1 + draw % 5, head_start=draw % 3 * NS)
        elif what == "run":
            entry = entry_at(NS + draw, sequence, holder=entry_at(draw, sequence))
        else:
            if model:
                entry = model.pop(0 if what == "front" else draw % len(model))
                line.remove(entry)
            entry = None  # type: ignore[assignment]
        if entry is not None:
            assert line.ahead(entry.key) == sum(other.key < entry.key for other in model)
            assert line.is_last(entry.key) == all(other.key < entry.key for other in model)
            line.push(entry)
            model.append(entry)
            model.sort(key=lambda other: other.key)
        assert list(line) == model
        assert line.head(True) is (model[0] if model else None)
        assert line.head(False) is next((other for other in model if other.holder is not None), None)
        assert line.work == [sum(other.cost.requests for other in model) * line.tenant.shape.scales[0].unit]
        assert line.size == sum(other.holder is None for other in model)
        assert all(0 < len(block) <= BLOCK for block in line.blocks)
    line.recount()
    assert line.work[0] == sum(other.cost.requests for other in model) * line.tenant.shape.scales[0].unit


@given(
    st.lists(st.tuples(st.integers(0, 10**13), st.integers(0, 10**11)), min_size=2, max_size=20, unique=True)
)
def test_keys_compare_as_arrival_less_head_start_then_sequence(arrivals: list[tuple[int, int]]) -> None:
    """One integer stands for the pair, for arrivals before the epoch of the clock as well."""
    entries = [entry_at(now, n + 1, head_start=start) for n, (now, start) in enumerate(arrivals)]
    pairs = [(now - start, n) for n, (now, start) in enumerate(arrivals)]
    by_key = sorted(range(len(entries)), key=lambda n: entries[n].key)
    assert by_key == sorted(range(len(entries)), key=pairs.__getitem__)
    for entry, (now, start) in zip(entries, arrivals, strict=True):
        assert entry.key >> SEQUENCE_BITS + RUN_BITS == now - start


def test_calls_of_a_run_stand_behind_it_and_before_the_next_job() -> None:
    """However many calls: behind their run's key, in order, and never behind a later job's."""
    run, later = entry_at(NS, 7), entry_at(NS, 8)
    calls = [entry_at(NS + n, 9, holder=run) for n in range(5000)]
    keys = [run.key, *(call.key for call in calls), later.key]
    assert keys == sorted(keys)
    assert keys[-2] < keys[-1]
