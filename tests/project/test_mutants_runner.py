"""The runner behind `make mutants`: a mutant counts as caught only when the named test fails."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.project.repository import ROOT

pytestmark = [pytest.mark.repository, pytest.mark.timeout(90)]

PATCH = """\
law: {law}
breaks: {breaks}
test: tests/test_double.py::{test}
--- a/scheduler/__init__.py
+++ b/scheduler/__init__.py
@@ -1,2 +1,2 @@
 def double(number):
-    return {before}
+    return {after}
"""

TESTS = """\
import pytest
from scheduler import double

def test_of_two():
    assert double(2) == 4

def test_of_zero():
    assert double(0) == 0

@pytest.mark.skip(reason="never")
def test_skipped():
    assert double(2) == 4

@pytest.fixture
def doubled():
    assert double(2) == 4

def test_with_fixture(doubled):
    pass

def test_that_fails_anyway():
    assert double(2) == 5
"""


class Project:
    """A project of one function, and the mutants of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "scheduler").mkdir()
        (root / "tests" / "mutants").mkdir(parents=True)
        (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
        (root / "scheduler" / "__init__.py").write_text("def double(number):\n    return number * 2\n")
        (root / "tests" / "test_double.py").write_text(TESTS)

    def mutant(
        self,
        after: str,
        *,
        test: str = "test_of_two",
        law: str = "1",
        before: str = "number * 2",
        name: str = "one",
    ) -> None:
        """Add a patch that makes `double` return something else."""
        text = PATCH.format(law=law, breaks="It does not double.", test=test, before=before, after=after)
        (self.root / "tests" / "mutants" / f"{name}.patch").write_text(text)

    def command(self, laws: str) -> list[str]:
        """The runner as make calls it."""
        return [sys.executable, str(ROOT / "tools" / "mutants.py"), "--root", str(self.root), "--laws", laws]

    def run(self, laws: str = "1") -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(self.command(laws), capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_caught_mutant_passes(project: Project) -> None:
    project.mutant("number * 3")
    done = project.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one.patch | tests/test_double.py::test_of_two | caught" in done.stdout
    assert "1 of 1 caught" in done.stdout


def test_the_tree_itself_stays_as_it_is(project: Project) -> None:
    project.mutant("number * 3")
    project.run()
    assert (project.root / "scheduler" / "__init__.py").read_text().endswith("return number * 2\n")
    assert sorted(path.name for path in project.root.iterdir()) == ["pyproject.toml", "scheduler", "tests"]


def test_a_survivor_is_reported_beside_the_caught(project: Project) -> None:
    project.mutant("number * 3", name="caught")
    project.mutant("number * 3", name="survivor", test="test_of_zero")
    done = project.run()
    assert done.returncode == 1
    assert "survivor.patch | tests/test_double.py::test_of_zero | SURVIVED" in done.stdout
    assert "1 of 2 caught" in done.stdout


def test_a_patch_that_no_longer_applies_is_an_error(project: Project) -> None:
    project.mutant("number * 3", before="number + number")
    done = project.run()
    assert done.returncode == 1
    assert "does not apply" in done.stdout
    assert "0 of 1 caught" in done.stdout


@pytest.mark.parametrize(
    ("after", "test", "complaint"),
    [
        ("number *", "test_of_two", "does not compile"),
        ("unknown", "test_of_two", "failed for the wrong reason: NameError"),
        ("number * 3", "test_with_fixture", "not with a failing test"),
        ("number * 3", "test_skipped", "was skipped"),
        ("number * 3", "test_that_fails_anyway", "does not pass on the code as it is"),
        ("number * 3", "test_of_nothing", "does not pass on the code as it is"),
    ],
)
def test_no_other_red_line_counts_as_a_catch(project: Project, after: str, test: str, complaint: str) -> None:
    project.mutant(after, test=test)
    done = project.run()
    assert done.returncode == 1
    assert complaint in done.stdout
    assert "0 of 1 caught" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_all_that_it_started(project: Project, tmp_path: Path, number: signal.Signals) -> None:
    """Told to end in the midst of a test, it leaves neither processes nor folders."""
    project.mutant("number * 3", test="test_that_takes_long")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    started = tmp_path / "started"
    (project.root / "tests" / "test_double.py").write_text(
        "import os, pathlib\n\ndef test_that_takes_long():\n"
        f"    os.mkfifo({str(started)!r} + '.of')\n"
        f"    pathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n"
        f"    open({str(started)!r} + '.of').read()\n"
    )
    with subprocess.Popen(project.command("1"), env={**os.environ, "TMPDIR": str(scratch)}) as process:
        while not (started.exists() and started.read_text()):
            assert process.poll() is None
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        process.send_signal(number)
        assert process.wait(timeout=20) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert list(scratch.iterdir()) == []


def test_a_law_without_a_mutant_fails_the_run(project: Project) -> None:
    project.mutant("number * 3")
    done = project.run(laws="1,2,13")
    assert done.returncode == 1
    assert "no mutant breaks law 2, 13" in done.stdout


def test_a_patch_may_not_break_the_tests_themselves(project: Project) -> None:
    project.mutant("number * 3")
    patch = project.root / "tests" / "mutants" / "one.patch"
    patch.write_text(patch.read_text().replace("scheduler/__init__.py", "tests/test_double.py"))
    done = project.run()
    assert done.returncode == 1
    assert "changes tests/test_double.py" in done.stdout
