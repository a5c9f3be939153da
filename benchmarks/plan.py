"""Running the cases: a process per (case, subject, repeat), subjects interleaved, and what came of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import CASES, Case, Column
from benchmarks.durable.subjects import DISTRIBUTIONS
from benchmarks.measure import Row
from benchmarks.subjects import installed, versions

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 180.0
"""Seconds after which a measurement is given up."""


@dataclass
class Result:
    """What all runs of one subject in one case gave: rows, or why there are none."""

    rows: list[Row] = field(default_factory=list)
    not_possible: str | None = None
    error: str | None = None

    def add(self, outcome: dict[str, Any]) -> None:
        """Take in what a child said."""
        if "row" in outcome:
            self.rows.append(outcome["row"])
        self.not_possible = outcome.get("not possible", self.not_possible)
        self.error = outcome.get("error", self.error)

    def values(self, key: str) -> list[float]:
        """One figure of all runs; empty unless every run has it."""
        values = [value for row in self.rows if (value := row.get(key)) is not None]
        return values if len(values) == len(self.rows) and self.error is None else []

    def figure(self, column: Column) -> float | None:
        """The figure that counts: the median of the runs, or the worst."""
        values = self.values(column.key)
        if not values:
            return None
        return max(values) if column.worst else median(values)


Results = dict[str, dict[str, Result]]
"""By case and subject."""


def run(case: Case, subjects: Sequence[str], quick: bool) -> dict[str, dict[str, Any]]:
    """Measure subjects in one new process. A subject that said nothing failed."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.child",
        case.name,
        *(["--quick"] if quick else []),
        *subjects,
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        lines, problem = done.stdout.splitlines(), (done.stderr.strip() or "no output").splitlines()[-1]
    except subprocess.TimeoutExpired:
        lines, problem = [], f"not done after {TIMEOUT:.0f} s"
    said = [json.loads(line) for line in lines if line.startswith("{")]
    found = {outcome.pop("subject"): outcome for outcome in said}
    return {subject: found.get(subject, {"error": problem}) for subject in subjects}


def rounds(case: Case, repeats: int) -> Iterator[list[str]]:
    """Who is measured in each repeat, in turn: who is only shown beside, once."""
    for repeat in range(min(repeats, case.most or repeats)):
        yield [*case.judged, *(case.beside if repeat == 0 else ())]


def measure(case: Case, repeats: int, quick: bool) -> dict[str, Result]:
    """All runs of a case. A subject that cannot do it, or fails, is not asked again."""
    results = {subject: Result() for subject in case.subjects}
    for subjects in rounds(case, 1 if quick else repeats):
        groups = [subjects] if quick else [[subject] for subject in subjects]
        for group in groups:
            asked = [name for name in group if not (results[name].not_possible or results[name].error)]
            if asked:
                for subject, outcome in run(case, asked, quick).items():
                    results[subject].add(outcome)
    return results


def measure_all(names: Sequence[str], repeats: int, quick: bool) -> Results:
    """All cases, telling on the way how it goes."""
    results: Results = {}
    for name in names:
        begin = time.monotonic()
        print(f"{name:24}", end=" ", flush=True, file=sys.stderr)
        results[name] = measure(CASES[name], repeats, quick)
        failed = [subject for subject, result in results[name].items() if result.error]
        print(
            f"{time.monotonic() - begin:6.1f} s{'  failed: ' + ', '.join(failed) if failed else ''}",
            file=sys.stderr,
        )
    return results


def machine() -> dict[str, Any]:
    """What the figures depend on. No paths and no names of hosts."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {**versions(), **{name: installed(name) for name in DISTRIBUTIONS}},
    }


def as_json(results: Results) -> dict[str, Any]:
    """The results as they are written to a file: every row of every run, and the figures that count."""
    return {
        name: {
            subject: {
                **({"not possible": result.not_possible} if result.not_possible else {}),
                **({"error": result.error} if result.error else {}),
                "figures": {column.key: result.figure(column) for column in CASES[name].columns},
                "runs": result.rows,
            }
            for subject, result in subjects.items()
        }
        for name, subjects in results.items()
    }
