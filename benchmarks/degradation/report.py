"""The tables of a run, and where they go."""

from __future__ import annotations

from typing import Any

from benchmarks.degradation.account import DIMENSIONS
from benchmarks.degradation.targets import JUDGED, LOAD, judged
from benchmarks.measure import Row
from benchmarks.tables import Table, markdown, plain

Loads = dict[str, dict[str, Row]]
"""By load, as text, and row."""

COLUMNS = (
    ("answered, %", ("answered",), ".1f"),
    ("in 60 s, %", ("in_time",), ".1f"),
    ("of quiet", ("quiet_in_time",), ".1f"),
    ("of noisy", ("noisy_in_time",), ".1f"),
    ("429s", ("limited",), ",.0f"),
    ("after warm-up", ("limited_steady",), ",.0f"),
    ("529s", ("overloaded",), ",.0f"),
    ("wasted calls, %", ("wasted_percent",), ".1f"),
    ("use, %", ("use",), ".1f"),
    ("while work waits", ("use_waiting",), ".1f"),
    ("quiet wait p50 / p99, s", ("quiet_wait_p50", "quiet_wait_p99"), ".1f"),
    ("noisy wait p50 / p99, s", ("noisy_wait_p50", "noisy_wait_p99"), ".1f"),
    ("Jain", ("jain",), ".3f"),
    ("quiet p99 ÷ alone", ("quiet_ratio",), ".2f"),
    ("worst tenant", ("quiet_ratio_worst",), ".2f"),
    ("wait ÷ told p10 / p50 / p90", ("told_p10", "told_p50", "told_p90"), ".1f"),
)


def cell(row: Row, keys: tuple[str, ...], form: str) -> str:
    """One or several figures as text."""
    values = [row.get(key) for key in keys]
    return " / ".join("–" if value is None else f"{value:{form}}" for value in values)


def table(rows: dict[str, Row]) -> Table:
    """One line per row of the comparison. Overload is shown where there was any."""
    overloaded = any(row.get("overloaded") for row in rows.values())
    columns = [column for column in COLUMNS if overloaded or column[1] != ("overloaded",)]
    found = [["", *(heading for heading, _, _ in columns)]]
    for name, row in rows.items():
        found.append([name, *(cell(row, keys, form) for _, keys, form in columns)])
    return found


def title(load: str, facts: dict[str, Any]) -> str:
    """The load, and what the account allows at it."""
    offer = facts["offers"][load]
    requests, input_tokens, output_tokens = offer["per_minute"]
    return (
        f"Load {float(load):.0%}: {requests:,} requests, {input_tokens:,} input tokens and {output_tokens:,} "
        f"output tokens a minute; {DIMENSIONS[offer['binding']]} are scarcest"
    )


def sections(loads: Loads, facts: dict[str, Any]) -> list[tuple[str, Table]]:
    """Title and table of every load, and the target's."""
    found = [(title(load, facts), table(rows)) for load, rows in loads.items()]
    full = loads.get(f"{LOAD:g}", {})
    if all(name in full for name in JUDGED):
        found.append(("Target P14", judged(full)))
    return found


def about(facts: dict[str, Any]) -> str:
    """What was played."""
    return (
        f"{facts['trace']}: {facts['prompts']:,} prompts of {facts['tenants']} tenants in "
        f"{facts['minutes']:.1f} minutes, {facts['noisy_percent']:.0f} % of them of {facts['noisy']} noisy "
        f"tenants. A full bucket holds {facts['burst_s']:g} s of the account's limits."
    )


def terminal(loads: Loads, facts: dict[str, Any]) -> str:
    """Everything for the terminal."""
    parts = [f"{heading}\n{plain(lines)}" for heading, lines in sections(loads, facts)]
    return "\n\n".join([about(facts), *parts])


def document(loads: Loads, facts: dict[str, Any], level: str = "###") -> str:
    """Everything for a page."""
    parts = [about(facts)]
    for heading, lines in sections(loads, facts):
        parts += [f"{level} {heading}", markdown(lines)]
    return "\n\n".join(parts)


def replaced(page: str, name: str, generated: str) -> str:
    """The page with one generated part exchanged. Raises ValueError if it has no place for that."""
    begin, end = f"<!-- degradation: begin {name} -->", f"<!-- degradation: end {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"docs/degradation.md: the markers of the part {name!r} are missing")
    return f"{before}{begin}\n\n{generated}\n\n{end}{after}"
