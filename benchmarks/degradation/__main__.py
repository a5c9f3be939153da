"""Play one trace to every row at several loads, print the tables: ``python -m benchmarks.degradation``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.degradation import play
from benchmarks.degradation.account import Offer
from benchmarks.degradation.chart import COLOURS, chart
from benchmarks.degradation.figures import figures
from benchmarks.degradation.report import Loads, document, replaced, terminal
from benchmarks.degradation.rows import ROWS, on_the_real_clock
from benchmarks.degradation.trace import NOISY, TENANTS, Trace, read, synthetic
from benchmarks.measure import NS

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "degradation.json"
PAGE = ROOT / "docs" / "degradation.md"
PICTURE = ROOT / "docs" / "degradation.svg"

LOADS = (0.7, 1.0, 1.5, 3.0)
MINUTES, REAL_MINUTES, QUICK_MINUTES = 10.0, 2.0, 1.0


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.degradation", description=__doc__)
    add = parser.add_argument
    add("--trace", type=Path, metavar="FILE", help="a CSV file of TIMESTAMP, ContextTokens, GeneratedTokens")
    add("--minutes", type=float, help="of the trace (default: 10; 2 with --real, 1 with --quick)")
    add("--loads", type=float, nargs="+", help="demand over the account's limit (default: 0.7 1 1.5 3)")
    add("--seed", type=int, default=1, help="of the trace and of every draw (default: 1)")
    add(
        "--burst",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds of its limits that the account saves up",
    )
    add("--capacity", type=int, help="calls at once before the account slows down; at twice as many, 529")
    add("--quick", action="store_true", help="a minute, two loads: does everything run?")
    add(
        "--real",
        type=float,
        metavar="LOAD",
        help="one load on the real clock, beside the same in virtual time",
    )
    add("--json", action="store_true", help="print the figures as JSON instead of tables")
    add(
        "--write",
        action="store_true",
        help="write the figures, and this part of the page, where they are kept",
    )
    chosen = parser.parse_args(arguments)
    usual = REAL_MINUTES if chosen.real else QUICK_MINUTES if chosen.quick else MINUTES
    chosen.minutes = chosen.minutes or usual
    chosen.loads = chosen.loads or ([1.0, 3.0] if chosen.quick else LOADS)
    for name, values in (
        ("--loads", chosen.loads),
        ("--minutes", [chosen.minutes]),
        ("--burst", [chosen.burst]),
    ):
        if min(values) <= 0:
            parser.error(f"{name}: must be above 0, got {min(values):g}")
    if len(chosen.loads) > len(COLOURS):
        parser.error(f"--loads: at most {len(COLOURS)}")
    return chosen


def traced(chosen: argparse.Namespace) -> Trace:
    """The trace that was asked for."""
    if chosen.trace is not None:
        return read(chosen.trace, chosen.seed, chosen.minutes)
    return synthetic(chosen.seed, chosen.minutes)


def measured(trace: Trace, offer: Offer, seed: int) -> dict[str, Any]:
    """Every row at one load, in virtual time."""
    rows = {}
    for name, kind in ROWS.items():
        begin = time.monotonic()
        journal = play.virtually(kind, trace, offer, TENANTS, seed)
        alone = play.alone(kind, trace, offer, TENANTS, seed)
        rows[name] = figures(journal, alone, trace, offer)
        print(f"load {offer.load:<4g} {name:28} {time.monotonic() - begin:5.1f} s", file=sys.stderr)
    return rows


def measured_twice(trace: Trace, offer: Offer, seed: int) -> dict[str, Any]:
    """Every row at one load, in virtual and in real time. What a tenant has alone is virtual in both."""
    print(f"real time: {trace.length / NS:.0f} s, and the backlog", file=sys.stderr)
    kinds = on_the_real_clock()
    real = play.really(kinds.values(), trace, offer, TENANTS, seed)
    rows = {}
    for (name, kind), journal in zip(kinds.items(), real, strict=True):
        alone = play.alone(kind, trace, offer, TENANTS, seed) if name in ROWS else []
        if name in ROWS:
            virtual = play.virtually(kind, trace, offer, TENANTS, seed)
            rows[name] = figures(virtual, alone, trace, offer)
        rows[f"{name}, real clock"] = figures(journal, alone, trace, offer)
    return rows


def facts_of(trace: Trace, offers: Sequence[Offer], chosen: argparse.Namespace) -> dict[str, Any]:
    """What was played, for whoever reads the figures."""
    noisy = sum(prompt.tenant in trace.noisy for prompt in trace.prompts)
    return {
        "trace": trace.name,
        "prompts": len(trace.prompts),
        "tenants": TENANTS,
        "noisy": NOISY,
        "noisy_percent": 100 * noisy / len(trace.prompts),
        "minutes": trace.length / NS / 60,
        "demand_per_minute": trace.per_minute(),
        "seed": chosen.seed,
        "burst_s": chosen.burst,
        "capacity": chosen.capacity,
        "deadline_s": play.DEADLINE_S,
        "offers": {f"{offer.load:g}": asdict(offer) for offer in offers},
    }


def write(name: str, loads: Loads, facts: dict[str, Any]) -> None:
    """Put a run beside the others that are kept: its figures, its part of the page, and the picture."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    kept[name] = {"facts": facts, "loads": loads}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replaced(page, name, document(loads, facts)), encoding="utf-8")
    if name == "synthetic":
        PICTURE.write_text(chart(loads), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit code."""
    chosen = options(arguments)
    trace = traced(chosen)
    wanted = [chosen.real] if chosen.real else chosen.loads
    offers = [Offer.of(trace, load, chosen.burst, chosen.capacity) for load in wanted]
    largest = max(max(prompt.input_tokens, prompt.guessed_input) for prompt in trace.prompts)
    if any(offer.burst(1) < largest for offer in offers):
        print(
            f"--burst: a prompt of {largest:,} tokens never fits the account at these loads", file=sys.stderr
        )
        return 2
    measure = measured_twice if chosen.real else measured
    loads: Loads = {f"{offer.load:g}": measure(trace, offer, chosen.seed) for offer in offers}
    facts = facts_of(trace, offers, chosen)
    print(json.dumps({"facts": facts, "loads": loads}) if chosen.json else terminal(loads, facts))
    if chosen.write:
        name = "real clock" if chosen.real else "file" if chosen.trace else "synthetic"
        write(name, loads, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
