"""Break each law on purpose and require the named test to notice.

A mutant is a small patch in `tests/mutants/`, with a header above the diff:

    law: 1
    breaks: The fraction below a nanosecond is dropped, so the bucket drifts.
    test: tests/core/test_bucket.py::test_no_drift

`test:` may be repeated: every test named there must fail. It must pass on the code as it is, and fail on a
patched copy for the right reason: a patch that does not apply, does not compile or cannot be collected is an
error, not a catch. What follows `--` on the command line is handed to pytest.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from commands import Commands

COPIED = ("scheduler", "agent", "tests", "pyproject.toml")
MUTABLE = ("scheduler/", "agent/")
LAWS = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "11", "12", "13")
HEADER = re.compile(r"^#?\s*(law|breaks|test):\s*(\S.*?)\s*$")
TARGET = re.compile(r"^--- [^\n]+\n\+\+\+ (?:b/)?(\S+)", re.MULTILINE)
# A test that stumbles over one of these did not judge the law: the patch is sloppy, or hypothesis gave up.
WRONG_REASON = re.compile(
    r"^[\w.]*\b(SyntaxError|IndentationError|NameError|UnboundLocalError|ImportError|ModuleNotFoundError"
    r"|FailedHealthCheck|Unsatisfiable|Flaky\w*)\b"
)


class MutantError(Exception):
    """A mutant that proves nothing: its header, its patch or its test is out of order."""


@dataclass(frozen=True)
class Mutant:
    """One patch, the law it breaks and the tests that must notice."""

    patch: Path
    laws: tuple[str, ...]
    breaks: str
    tests: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """What one run of pytest came to."""

    exit_code: int
    passed: int
    skipped: int
    failures: tuple[str, ...]
    errors: int
    output: str


@dataclass(frozen=True)
class Verdict:
    """One row of the table."""

    law: str
    patch: str
    test: str
    result: str
    detail: str = ""


@dataclass(frozen=True)
class Bench:
    """Where and how tests are run."""

    root: Path
    scratch: Path
    jobs: int
    limit_s: float
    pytest_options: tuple[str, ...]
    commands: Commands

    def copy(self, name: str) -> Path:
        """Copy what the tests need to a folder of its own. Caches stay behind: one could hide a patch."""
        target = self.scratch / name
        target.mkdir()
        for part in COPIED:
            source = self.root / part
            if source.is_dir():
                shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            elif source.exists():
                shutil.copy2(source, target / part)
        return target


def parse(patch: Path) -> Mutant:
    """Read a patch and its header."""
    text = patch.read_text(encoding="utf-8")
    header, _, _ = text.partition("\n--- ")
    found: dict[str, list[str]] = {"law": [], "breaks": [], "test": []}
    for match in filter(None, map(HEADER.match, header.splitlines())):
        found[match[1]].append(match[2])
    missing = [name for name, values in found.items() if not values]
    if missing:
        raise MutantError(f"no `{missing[0]}:` in the header")
    files = tuple(sorted({name for name in TARGET.findall(text) if name != "/dev/null"}))
    if not files:
        raise MutantError("no file is changed")
    if outside := [name for name in files if not name.startswith(MUTABLE)]:
        raise MutantError(f"changes {outside[0]}: only {' and '.join(MUTABLE)} may be broken")
    laws = tuple(re.split(r"[,\s]+", found["law"][0]))
    return Mutant(patch, laws, found["breaks"][0], tuple(found["test"]), files)


def apply(mutant: Mutant, tree: Path) -> None:
    """Apply the patch to a copied tree, and see that what it touched is still Python."""
    # The copy may lie below some other repository: git must not look up there for one.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    before = [content(tree / name) for name in mutant.files]
    done = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", str(mutant.patch.resolve())],
        cwd=tree, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise MutantError(f"the patch does not apply: {done.stderr.strip()}")
    if before == [content(tree / name) for name in mutant.files]:
        raise MutantError("the patch changes nothing")
    for name in mutant.files:
        if name.endswith(".py"):
            try:
                compile(content(tree / name), name, "exec", dont_inherit=True)
            except SyntaxError as error:
                raise MutantError(f"the patched file does not compile: {error}") from error


def content(path: Path) -> bytes:
    """Return what a file holds, nothing if it is not there."""
    return path.read_bytes() if path.exists() else b""


def run_tests(bench: Bench, tree: Path, *tests: str) -> Run:
    """Run tests in a tree, in a process of their own, until one fails."""
    handle, report = tempfile.mkstemp(suffix=".xml", dir=bench.scratch)
    os.close(handle)
    options = ["-q", "-x", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, *bench.pytest_options, *tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)}
    limit_s = bench.limit_s * len(tests)
    try:
        exit_code, output = bench.commands.run(command, tree, environment, limit_s)
    except subprocess.TimeoutExpired:
        raise MutantError(f"no end after {limit_s:g} s") from None
    return summarise(exit_code, output, Path(report))


def summarise(exit_code: int, output: str, report: Path) -> Run:
    """Count what pytest reported."""
    if not report.stat().st_size:
        return Run(exit_code, 0, 0, (), 0, output)
    cases = list(ET.parse(report).iter("testcase"))  # noqa: S314 - written by pytest a moment ago
    failures = tuple(failure.get("message", "") for case in cases for failure in case.iter("failure"))
    errors = sum(len(case.findall("error")) for case in cases)
    passed = sum(1 for case in cases if not {child.tag for child in case} & {"failure", "error", "skipped"})
    skipped = sum(len(case.findall("skipped")) for case in cases)
    return Run(exit_code, passed, skipped, failures, errors, output)


def baseline_fault(run: Run) -> str:
    """Say why a test is no witness on the code as it is; empty if it is one."""
    if run.exit_code != 0:
        return (
            f"the test does not pass on the code as it is (pytest: exit {run.exit_code})\n{tail(run.output)}"
        )
    return "the test was skipped on the code as it is" if run.skipped or not run.passed else ""


def judge(run: Run) -> tuple[str, str]:
    """Tell a failing test from everything else that ends in a red line."""
    if run.exit_code == 0:
        return "SURVIVED", ""
    if run.exit_code != 1 or run.errors or not run.failures:
        return "ERROR", f"pytest ended with exit {run.exit_code}, not with a failing test\n{tail(run.output)}"
    if wrong := list(filter(WRONG_REASON.match, run.failures)):
        return "ERROR", f"the test failed for the wrong reason: {wrong[0]}"
    return "caught", ""


def tail(output: str, lines: int = 15) -> str:
    """Return the last lines of an output, indented."""
    return "\n".join(f"    {line}" for line in output.rstrip().splitlines()[-lines:])


def try_mutant(bench: Bench, mutant: Mutant, faults: dict[str, str]) -> list[Verdict]:
    """Break a copy of the code and run the mutant's tests there."""
    law, name = ",".join(mutant.laws), mutant.patch.name
    if unfit := [test for test in mutant.tests if faults[test]]:
        return [Verdict(law, name, test, "ERROR", faults[test]) for test in unfit]
    try:
        tree = bench.copy(name)
        apply(mutant, tree)
        return [Verdict(law, name, test, *judge(run_tests(bench, tree, test))) for test in mutant.tests]
    except MutantError as error:
        return [Verdict(law, name, mutant.tests[0], "ERROR", str(error))]


def baseline(bench: Bench, tests: Sequence[str]) -> dict[str, str]:
    """Run every named test once on the code as it is: test → fault, empty if it passes.

    Many share a process; where one of them fails each has one of its own, to say whose fault it is.
    """
    tree = bench.copy("as-it-is")

    def fault(*tests: str) -> str:
        try:
            return baseline_fault(run_tests(bench, tree, *tests))
        except MutantError as error:
            return f"on the code as it is: {error}"

    parts = [part for at in range(bench.jobs) if (part := tests[at :: bench.jobs])]
    with ThreadPoolExecutor(bench.jobs) as pool:
        faults = zip(parts, pool.map(lambda part: fault(*part), parts), strict=True)
        rough = [test for part, wrong in faults if wrong for test in part]
        return dict.fromkeys(tests, "") | dict(zip(rough, pool.map(fault, rough), strict=True))


def read_all(folder: Path) -> tuple[list[Mutant], list[Verdict]]:
    """Read every patch of a folder; those that cannot be read are verdicts already."""
    mutants, broken = [], []
    for patch in sorted(folder.glob("*.patch")):
        try:
            mutants.append(parse(patch))
        except MutantError as error:
            broken.append(Verdict("?", patch.name, "-", "ERROR", str(error)))
    return mutants, broken


def try_all(bench: Bench, mutants: Sequence[Mutant]) -> Iterator[Verdict]:
    """Try every mutant, a few at a time, and yield the verdicts in the order of the patches."""
    faults = baseline(bench, sorted({test for mutant in mutants for test in mutant.tests}))
    with ThreadPoolExecutor(bench.jobs) as pool:
        for verdicts in pool.map(lambda mutant: try_mutant(bench, mutant, faults), mutants):
            yield from verdicts


def table(verdicts: Sequence[Verdict]) -> str:
    """Lay the verdicts out: law | patch | test | result, and details below."""
    rows = [("law", "patch", "test", "result"), *((v.law, v.patch, v.test, v.result) for v in verdicts)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [" | ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    details = [f"{v.patch}: {v.detail}" for v in verdicts if v.detail]
    return "\n".join([*lines, *([""] if details else []), *details])


def main(arguments: Sequence[str] | None = None) -> int:
    """Try every mutant of the tree; return 0 only if all were caught and no law lacks one."""
    options = read_options(arguments)
    mutants, verdicts = read_all(options.root / "tests" / "mutants")
    commands = Commands()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, commands.end)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        bench = Bench(
            options.root, Path(scratch), options.jobs, options.limit, tuple(options.pytest), commands
        )
        verdicts += try_all(bench, mutants)
    print(table(verdicts))
    if lacking := [law for law in options.laws if not any(law in mutant.laws for mutant in mutants)]:
        print(f"\nno mutant breaks law {', '.join(lacking)}")
    caught = sum(verdict.result == "caught" for verdict in verdicts)
    print(f"\n{caught} of {len(verdicts)} caught")
    return 0 if verdicts and caught == len(verdicts) and not lacking else 1


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--laws", type=lambda text: text.split(","), default=LAWS, help="that need a mutant")
    parser.add_argument("--jobs", type=int, default=3, help="mutants tried at a time")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds one test may take")
    parser.add_argument("pytest", nargs="*", help="options for pytest, after --")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
