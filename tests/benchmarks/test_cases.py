"""Every case of the benchmarks runs, at a tiny size, for every subject, and gives its figures.

Nothing here looks at how fast anything was: that is what `make bench` is for.
"""

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.project.repository import ROOT

pytestmark = [pytest.mark.repository, pytest.mark.timeout(120)]

# By the start of a case's name: what every subject that can do it must tell.
FIGURES = {
    "granted": {"ns"},
    "refused": {"ns"},
    "queued": {"p50_ms", "p99_ms", "max_ms", "inversions", "early", "setup_ms", "released", "cpu_us"},
    "release-cpu": {"cpu_us", "seconds", "released"},
    "crowd": {"cpu_us", "cpu_s", "setup_s", "p50_ms", "p99_ms", "max_ms", "released"},
    "tenant": {"bytes", "rss"},
    "waiter": {"bytes", "rss"},
    "cancel-half": {"total", "p99_ms", "inversions", "early", "cancelled"},
    "cancel-race": {"races", "cancelled", "between", "ran", "lost", "twice"},
    "growth": {"grant_us", "offer_us", "waiting", "grants"},
    "gate": {"rate"},
    "metered": {"ns"},
    "behaviour": {"figure", "right"},
    "durable-enqueue": {"one", "some", "crowd", "best"},
    "durable-drain": {"one", "jobs"},
    "durable-life": {"rate", "p50_ms", "p99_ms"},
    "durable-pickup": {"p50_ms", "p99_ms", "max_ms"},
    "durable-paced": {"total", "p50_ms", "p99_ms", "max_ms", "early", "setup_s"},
    "durable-metered": {"us", "rate", "p50_ms", "p99_ms"},
    "durable-claim": {"claim_us", "next_us", "settle_us"},
}


def program(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks."""
    command = [sys.executable, "-m", "benchmarks", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@cache
def names() -> tuple[str, ...]:
    """Return the names of all cases, by the list that the program prints."""
    return tuple(line.split()[0] for line in program("--list").stdout.splitlines())


@pytest.mark.parametrize("start", FIGURES)
def test_every_case_runs_for_every_subject(start: str) -> None:
    pytest.importorskip("aiolimiter", reason="the peers are in the group bench")
    done = program("--quick", "--json", "--cases", start)
    assert done.returncode == 0, done.stdout + done.stderr
    cases: dict[str, Any] = json.loads(done.stdout)["cases"]
    assert cases
    for name, subjects in cases.items():
        assert any("waitline" in subject or name.startswith("growth") for subject in subjects)
        for subject, result in subjects.items():
            if "not possible" not in result:
                assert FIGURES[start] <= known(result["figures"]), (name, subject, result)


def known(figures: dict[str, float | None]) -> set[str]:
    """Return the names of the figures that have a value."""
    return {key for key, value in figures.items() if value is not None}


def test_no_case_is_left_out_here() -> None:
    pytest.importorskip("aiolimiter", reason="the peers are in the group bench")
    assert len(names()) > 20
    assert [name for name in names() if not name.startswith(tuple(FIGURES))] == []


def test_an_unknown_case_is_an_error() -> None:
    pytest.importorskip("aiolimiter", reason="the peers are in the group bench")
    assert program("--cases", "nothing-of-the-kind").returncode == 2
