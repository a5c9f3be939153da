"""Measure everything in one run, write the figures, print them, judge them: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import CASES
from benchmarks.plan import ROOT, Results, as_json, machine, measure_all
from benchmarks.report import document, replaced, terminal
from benchmarks.targets import Verdict, judge_all

LATEST = ROOT / "benchmarks" / "results" / "latest.json"
PAGE = ROOT / "docs" / "benchmarks.md"


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, once: does it run? Not judged, not written"
    )
    parser.add_argument(
        "--cases", nargs="+", metavar="CASE", help="only cases whose name starts with one of these"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of whatever a target names (default: 3)")
    parser.add_argument("--no-judge", action="store_true", help="exit 0 even if a floor is missed")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    chosen = parser.parse_args(arguments)
    chosen.names = [name for name in CASES if not chosen.cases or name.startswith(tuple(chosen.cases))]
    if not chosen.names:
        parser.error(f"--cases: none of {chosen.cases} begins the name of a case; see --list")
    if chosen.repeats < 1:
        parser.error("--repeats: must be at least 1")
    return chosen


def write(results: Results, verdicts: Sequence[Verdict], facts: dict[str, Any], repeats: int) -> None:
    """Write the figures and the page."""
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_text(
        json.dumps(figures(results, verdicts, facts, repeats), indent=1) + "\n", encoding="utf-8"
    )
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replaced(page, document(results, verdicts, facts, repeats)), encoding="utf-8")


def figures(
    results: Results, verdicts: Sequence[Verdict], facts: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Everything as JSON."""
    judged = [
        {
            "target": verdict.target.number,
            "quantity": verdict.target.quantity,
            "against": verdict.target.against,
            "value": verdict.value,
            "floor": verdict.target.floor,
            "goal": verdict.target.goal,
            "state": verdict.state,
        }
        for verdict in verdicts
    ]
    return {"machine": facts, "repeats": repeats, "targets": judged, "cases": as_json(results)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return the exit code: 1 if a floor was missed."""
    chosen = options(arguments)
    if chosen.list:
        print("\n".join(f"{name:24} {case.target:10} {case.title}" for name, case in CASES.items()))
        return 0
    facts = machine()  # before the run, for the load
    results = measure_all(chosen.names, chosen.repeats, chosen.quick)
    verdicts = [] if chosen.quick else judge_all(results)
    if chosen.json:
        print(json.dumps(figures(results, verdicts, facts, chosen.repeats), indent=1))
    else:
        print(terminal(results, verdicts))
    if not chosen.quick and not chosen.cases:  # a part of the cases would leave the page half empty
        write(results, verdicts, facts, chosen.repeats)
    failed = any(result.error for subjects in results.values() for result in subjects.values())
    missed = [verdict for verdict in verdicts if verdict.missed]
    if missed:
        print(f"\n{len(missed)} floors missed", file=sys.stderr)
    return 0 if chosen.no_judge else int(bool(missed) or (chosen.quick and failed))


if __name__ == "__main__":
    sys.exit(main())
