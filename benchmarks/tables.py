"""Tables of text: plain for the terminal, Markdown for the documentation."""

from __future__ import annotations

Table = list[list[str]]
"""Rows of cells; the first row is the heading."""


def plain(table: Table) -> str:
    """A table for the terminal."""
    # What a subject cannot do is told in its own words, which need not fit a column.
    rows = [row for row in table if not (len(row) > 2 and row[1] and not any(row[2:]))]
    widths = [max(len(row[index]) for row in rows) for index in range(len(table[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def markdown(table: Table) -> str:
    """A table for the documentation."""
    head, *rows = ([text.replace("|", "\\|") for text in row] for row in table)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
