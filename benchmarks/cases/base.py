"""What a case is, and the columns of its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.measure import Row


@dataclass(frozen=True)
class Column:
    """A figure of a case: its key in the row, its heading, its format, and which of several runs counts."""

    key: str
    heading: str
    form: str = ",.0f"
    worst: bool = False
    """The figure of several runs is the largest instead of the median: one early release is one too many."""


@dataclass(frozen=True)
class Case:
    """One measurement, run once per subject and repeat in a process of its own.

    `measure(subject, quick)` returns the figures. `judged` are the subjects that a target names, measured in
    every repeat; `beside` the ones that are shown for comparison, measured once. `most` bounds the repeats.
    """

    name: str
    target: str
    title: str
    measure: Callable[[str, bool], Row]
    judged: tuple[str, ...]
    columns: tuple[Column, ...]
    beside: tuple[str, ...] = ()
    most: int | None = None
    note: str = ""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Everybody, in the order of the table."""
        return (*self.judged, *self.beside)
