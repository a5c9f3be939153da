"""The agenda against a sorted list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.agenda import SLACK, Agenda


class Owner:
    """Whoever has an item placed."""

    placed: tuple[int, int, Owner] | None = None


@given(st.lists(st.tuples(st.sampled_from(["put", "put", "drop", "pop"]), st.integers(0, 50)), max_size=200))
def test_an_agenda_is_a_sorted_list(script: list[tuple[str, int]]) -> None:
    """Items come in order, dropped ones never, and what is dropped does not pile up."""
    agenda: Agenda[tuple[int, int, Owner]] = Agenda()
    model: list[tuple[int, int, Owner]] = []
    for number, (what, draw) in enumerate(script):
        if what == "put":
            item = (draw, number, Owner())
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
        assert agenda.stale == len(agenda.items) - len(model)


def test_what_is_dropped_does_not_pile_up() -> None:
    """A hundred thousand items put and dropped behind a lasting one leave a handful."""
    agenda: Agenda[tuple[int, int, Owner]] = Agenda()
    agenda.put((0, 0, Owner()))
    for number in range(100_000):
        owner = Owner()
        agenda.put((1, number, owner))
        agenda.drop(owner)
    assert len(agenda.items) <= 2 * SLACK
