"""The Makefile: every target says what it is for."""

import re
import subprocess

import pytest

from tests.project.repository import ROOT

pytestmark = pytest.mark.repository

TARGETS = {
    *("help", "demo", "test", "check", "bench", "docs", "clean"),
    *("mutants", "lint", "types", "contracts", "wheel-test"),
}


def phony() -> set[str]:
    """Return the targets that are commands, not files."""
    return set(
        " ".join(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)).split()
    )


def test_the_targets_are_there() -> None:
    assert phony() >= TARGETS


def test_make_alone_prints_the_help_of_every_target() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    described = dict(re.findall(r"^\s*([\w-]+)\s{2,}(\S.*)$", shown.stdout, re.MULTILINE))
    assert set(described) == phony()


def test_ci_runs_the_whole_check() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text()
    assert re.search(r"^\s*make .*\bcheck\b", script.read_text(), re.MULTILINE)
