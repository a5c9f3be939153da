"""Test the wheel as a user gets it: built, installed into a new environment, and run away from the source.

First without extras, where `import scheduler` must work with nothing else installed; then with all of them,
on a copy of the tests in a folder from which the source tree cannot be imported. Left out are those that
depend on nothing that a wheel could lack, and take minutes: they run on the source only.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

RACES = (
    "admit_deaths",
    "gate_corners",
    "gate_plans",
    "gate_walks",
    "ladder_corners",
    "leases",
    "locks",
    "plain_claims",
)
OUTAGES = ("outage_admit", "outage_gates", "outage_refuse")
LONG = (
    *(
        f"agent/test_agent_{name}.py"
        for name in ("batch_endings", "batch_failures", "batch_memories", "gates")
    ),
    *(f"cli/test_{name}.py" for name in ("demo", "jobs", "run", "run_durable")),
)
LEFT_OUT = (
    *("core", "conformance", "faults", "acceptance", "benchmarks"),
    *(f"stores/test_{name}.py" for name in (*RACES, *OUTAGES, "overload_plans", "plans")),
    *LONG,
)
"""Properties of the arithmetic and of races, and what takes long: they only need modules and SQL that other
tests use too. And what is not in a wheel."""

COMMANDS = (
    "demo.py::test_the_demo_shows_its_four_scenes",
    "jobs.py::test_a_worker_answers_what_is_submitted_and_ends_on_sigterm",
    "run.py::test_every_line_is_answered_with_its_id_tenant_waits_and_usage",
)
"""Of what takes long, because each starts processes, what shows that the commands work."""

SERVERS = {"WAITLINE_TEST_SERVERS": "18"}
"""One PostgreSQL is enough to see that a wheel has its SQL: see `tests.stores.servers`."""


def call(*command: str | Path, cwd: Path) -> None:
    """Run a command; a failure ends the program with its exit code."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | SERVERS
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def build_wheel(folder: Path) -> Path:
    """Build the wheel by way of the source distribution, as a release is built."""
    call(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def new_environment(folder: Path) -> Path:
    """Create an environment and return its interpreter."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    install(python, "--upgrade", "pip>=25.1", cwd=folder)  # the first that knows dependency groups
    return python


def install(python: Path, *words: str, cwd: Path) -> None:
    """Install into an environment."""
    call(python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *words, cwd=cwd)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, install, import, test."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pytest", nargs="*", help="options for pytest, after --")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="wheel-") as scratch:
        folder = Path(scratch).resolve()
        wheel = build_wheel(folder / "dist")
        python = new_environment(folder / "environment")
        away = folder / "away"
        away.mkdir()
        install(python, str(wheel), cwd=away)
        call(python, "-c", "import scheduler", cwd=away)
        shutil.copytree(ROOT / "tests", away / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(ROOT / "pyproject.toml", away)  # pytest's settings, and the list of what the tests need
        install(python, f"waitline[all] @ {wheel.as_uri()}", "--group", "test", cwd=away)
        call(folder / "environment" / "bin" / "waitline", "--help", cwd=away)
        tests = ["-m", "pytest", "--installed", "-q", "-n", "3", "--hypothesis-profile=ci", *options.pytest]
        call(python, *tests, *(f"--ignore=tests/{path}" for path in LEFT_OUT), cwd=away)
        call(python, *tests, *(f"tests/cli/test_{name}" for name in COMMANDS), cwd=away)


if __name__ == "__main__":
    main()
