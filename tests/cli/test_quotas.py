"""`waitline quotas`: a file is applied, shown, and never replaced by an older one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import DATABASE, Waitline

pytestmark = pytest.mark.timeout(90)

FILE = """version = {version}
[default]
requests = {{ permits = 5, burst = {burst} }}
[tenants.acme]
requests = {{ permits = 60, per = 60, burst = 10 }}
"""


def test_a_file_is_applied_and_shown(dsn: str, waitline: Waitline, tmp_path: Path) -> None:
    path = tmp_path / "quotas.toml"

    def ask(*arguments: object) -> subprocess.CompletedProcess[str]:
        return waitline(*arguments, **{DATABASE: dsn, "COLUMNS": "200"})

    def apply(version: int, burst: int) -> subprocess.CompletedProcess[str]:
        path.write_text(FILE.format(version=version, burst=burst))
        return ask("quotas", "apply", path)

    assert ask("quotas", "show").stdout == "no tenants\n"
    assert ask("quotas", "show", "acme").stdout == "acme was never seen: quotas= will decide\n"
    ask("submit", "umbra", "x", "--no-wait")
    assert "quotas=" in ask("quotas", "show", "umbra").stdout
    assert apply(3, 9).stdout == "version 3 counts: 1 known tenants have another quota now\n"
    assert apply(2, 8).stdout == "version 3 counts, which is newer than 2: no change\n"
    shown = ask("quotas", "show").stdout
    assert "requests 60 per 60 s, burst 10" in shown
    assert shown.count("requests 5 per 1 s, burst 9") == 2  # of umbra, and of all others
    assert "configuration, version 3" in ask("quotas", "show", "umbra").stdout
    assert "someone (not seen yet)" in ask("quotas", "show", "someone").stdout
    other = apply(3, 7)
    assert other.returncode == 2
    assert "version: 3 was applied before with another content" in other.stderr
    path.write_text("x = " + "[" * 50_000)
    assert ask("quotas", "apply", path).stderr == f"waitline: {path}: is nested too deeply\n"
    wrong = apply(4, 0)
    assert wrong.returncode == 2
    assert "default.requests.burst: must be at least 1, got 0" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert ask("quotas", "show").stdout == shown
