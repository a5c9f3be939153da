"""The agenda against a sorted list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.agenda import DAY, SLACK, Agenda, Calendar


class Owner:
    """Whoever has an item placed."""

    placed: tuple[int, int, Owner] | None = None


KINDS = pytest.mark.parametrize("kind", [Agenda, Calendar])

QUARTER = DAY - 2
"""Bits of a quarter of a day: fifty of them are many days with several items each."""


@KINDS
@given(st.lists(st.tuples(st.sampled_from(["put", "put", "drop", "pop"]), st.integers(0, 50)), max_size=200))
def test_an_agenda_is_a_sorted_list(
    kind: type[Agenda[tuple[int, int, Owner]]], script: list[tuple[str, int]]
) -> None:
    """Items come in order, dropped ones never, and what is dropped does not pile up."""
    agenda = kind()
    model: list[tuple[int, int, Owner]] = []
    for number, (what, draw) in enumerate(script):
        if what == "put":
            item = (draw << QUARTER, number, Owner())
            agenda.put(item)
            model.append(item)
            model.sort(key=lambda item: item[:2])
        elif what == "drop" and model:
            item = model.pop(draw % len(model))
            agenda.drop(item[-1])
            assert item[-1].placed is None
        elif what == "pop" and agenda.first() is not None:
            agenda.pop()
            model.pop(0)
        assert agenda.first() is (model[0] if model else None)
        assert agenda.stale == len(agenda) - len(model)
        assert bool(agenda.items) or not len(agenda)
        assert sorted(agenda) == model


@KINDS
def test_what_is_dropped_does_not_pile_up(kind: type[Agenda[tuple[int, int, Owner]]]) -> None:
    """A hundred thousand items put and dropped behind a lasting one leave a handful."""
    agenda = kind()
    agenda.put((0, 0, Owner()))
    for number in range(100_000):
        owner = Owner()
        agenda.put(((number % 50) << QUARTER, number + 1, owner))
        agenda.drop(owner)
    assert len(agenda) <= 2 * SLACK
