"""The tables: plain for the terminal, Markdown for the documentation. Everything in them was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.cases import CASES, Case, Column
from benchmarks.plan import Result, Results
from benchmarks.tables import Table, markdown, plain
from benchmarks.targets import Target, Verdict

BEGIN = "<!-- benchmarks: begin (written by `make bench`) -->"
END = "<!-- benchmarks: end -->"


def bound(target: Target, value: float | None) -> str:
    """A floor or a goal as text."""
    if value is None:
        return "–"
    return f"{'≥' if target.from_below else '≤'} {value:g}" if value else "0"


def target_table(verdicts: Sequence[Verdict]) -> Table:
    """One row per target that was measured."""
    table = [["", "quantity", "measured", "floor", "goal", ""]]
    for verdict in verdicts:
        target = verdict.target
        if verdict.state == "not measured":
            continue
        value = "–" if verdict.value is None else f"{verdict.value:{target.form}}{target.unit}"
        floor, goal = bound(target, target.floor), bound(target, target.goal)
        table.append([target.number, target.quantity, value, floor, goal, verdict.state])
    return table


def cell(result: Result, column: Column) -> str:
    """One figure as text."""
    value = result.figure(column)
    if value is None:
        return "–"
    return f"{value:{column.form}}"


def case_table(case: Case, results: dict[str, Result]) -> Table:
    """One row per subject; whoever cannot do it says why."""
    table = [["", *(column.heading for column in case.columns)]]
    for subject in case.subjects:
        result = results[subject]
        reason = result.not_possible and f"not possible: {result.not_possible}"
        reason = reason or (result.error and f"failed: {result.error}")
        if reason:
            table.append([subject, reason, *("" for _ in case.columns[1:])])
        else:
            table.append([subject, *(cell(result, column) for column in case.columns)])
    return table


def behaviour_table(cases: Sequence[Case], results: Results) -> Table:
    """All scenarios in one table: yes or no, and the figure."""
    table = [["", *(f"{case.title} ({case.columns[0].heading})" for case in cases)]]
    return table + [
        [subject, *(answer(case, results[case.name][subject]) for case in cases)]
        for subject in cases[0].subjects
    ]


def answer(case: Case, result: Result) -> str:
    """Whether a subject did the right thing."""
    figure, right = case.columns
    if result.not_possible:
        return "not possible"
    if result.error or not result.rows:
        return "failed"
    return f"{'yes' if result.figure(right) else 'no'} ({cell(result, figure)})"


def sections(results: Results) -> list[tuple[str, str, Table]]:
    """Title, note and table of everything that was measured."""
    found = [
        (f"{case.target}: {case.title}", case.note, case_table(case, results[name]))
        for name, case in CASES.items()
        if name in results and case.target != "behaviour"
    ]
    scenes = [case for name, case in CASES.items() if name in results and case.target == "behaviour"]
    if scenes:
        found.append(("Behaviour", "", behaviour_table(scenes, results)))
    return found


def terminal(results: Results, verdicts: Sequence[Verdict]) -> str:
    """Everything for the terminal; the judgement last, where it is seen."""
    parts = [f"{title}\n{plain(table)}" for title, _, table in sections(results)]
    judged = target_table(verdicts)
    return "\n\n".join([*parts, *([plain(judged)] if len(judged) > 1 else [])])


def facts(machine: dict[str, Any], repeats: int) -> str:
    """Where and how the figures were made."""
    libraries = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    where = f"{machine['date']}: {machine['python']}, {machine['system']}, {machine['cores']} cores"
    return (
        f"{where}, load before the run {machine['load_before']}. {libraries}. Medians of {repeats} repeats "
        "of whatever a target names; memory, growth, races and behaviour, and whatever no target names, were "
        "measured once. Counts of what must not happen are the worst of all repeats."
    )


def document(results: Results, verdicts: Sequence[Verdict], machine: dict[str, Any], repeats: int) -> str:
    """The generated part of the page."""
    parts = [facts(machine, repeats), "### Targets", markdown(target_table(verdicts))]
    for title, note, table in sections(results):
        parts += [f"### {title}", *([note] if note else []), markdown(table)]
    return "\n\n".join(parts)


def replaced(page: str, generated: str) -> str:
    """The page with its generated part exchanged. Raises ValueError if the page has no place for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("docs/benchmarks.md: the markers of the generated part are missing")
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"
