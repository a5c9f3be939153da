"""How commands print: names are text, whatever they look like, and nothing is cut."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

ENDLESS = 1_000_000
"""Columns of what is no terminal: a file or a pipe."""


def console(*, errors: bool = False, markup: bool = False) -> Console:
    """Where a command prints: as wide as the terminal, or as what it prints."""
    found = Console(stderr=errors, highlight=False, markup=markup, emoji=False)
    if not found.is_terminal:
        found.width = ENDLESS
    return found


def say(text: str, *, errors: bool = False, style: str | None = None) -> None:
    """Print lines as they are."""
    console(errors=errors).print(text, style=style, soft_wrap=True)


def listing(*columns: str) -> Table:
    """A table that folds what a narrow terminal cannot show, instead of cutting it."""
    table = Table(box=None)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def printable(text: str) -> str:
    """A text of which a terminal shows every character and obeys none."""
    return text if text.isprintable() else ascii(text)


def short(name: str, most: int = 40) -> str:
    """A name that fits in a column, printable."""
    text = printable(name)
    return text if len(text) <= most else text[: most - 1] + "…"


def number(value: float) -> str:
    """A number as a person reads it: whole where it is large, and never 0 where it is not."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
