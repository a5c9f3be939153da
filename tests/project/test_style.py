"""House rules that a linter does not know."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.repository import PACKAGES, files, modules, name_of, tree_of

pytestmark = pytest.mark.repository

FILE_LINES_MAX = 300
FUNCTION_LINES_MAX = 70
# Longer on purpose: `path` or `path:function` → why.
LONGER: dict[str, str] = {}

BANNED_NAMES = {"util", "utils", "manager", "managers", "helpers", "common", "misc"}

# Written in pieces, so that this file does not contain what it looks for.
HOSTS = re.compile(
    "|".join(["pypi" + r"\.(?:org|io)", "python" + "hosted", "ana" + r"conda\.org", "npm" + r"js\.\w+"])
)
SETTINGS = re.compile("|".join(["index" + "[-_]url", "trusted" + "[-_]host", "INDEX" + "_URL"]))
PATHS = re.compile(r"(?<![\w.~/-])/(?:home|Users|root|work|mnt|tmp/\w+)/\w")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[FunctionNode]:
    """Yield every function and method of a file."""
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, FunctionNode))


def length(function: FunctionNode) -> int:
    """Count the lines of a function without its docstring."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_there_is_code_to_judge() -> None:
    assert len(modules(*PACKAGES)) > 10
    assert sum(1 for path in modules(*PACKAGES) for _ in functions(path)) > 50


def test_files_fit_in_the_head() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in modules(*PACKAGES, "tools")}
    assert {
        name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX and name not in LONGER
    } == {}


def test_functions_fit_on_a_screen() -> None:
    lengths = {
        f"{name_of(path)}:{function.name}": length(function)
        for path in modules(*PACKAGES, "tools")
        for function in functions(path)
    }
    assert {
        name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES_MAX and name not in LONGER
    } == {}


def test_nothing_is_allowed_to_be_longer_that_no_longer_is() -> None:
    known = {name_of(path) for path in modules(*PACKAGES, "tools")}
    assert {name for name in LONGER if name.partition(":")[0] not in known} == set()


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [
        name_of(path) for path in modules(*PACKAGES) if BANNED_NAMES & {path.stem, path.parent.name}
    ] == []


def test_only_the_command_line_reads_the_environment() -> None:
    assert list(uses({"os.environ", "os.environb", "os.getenv", "os.getenvb"})) == []


def test_only_the_command_line_prints() -> None:
    assert list(uses({"print", "sys.stdout", "sys.stderr"})) == []


def uses(names: set[str]) -> Iterator[str]:
    """Yield where library code uses one of these names, however it was imported."""
    for path in modules(*PACKAGES):
        if name_of(path).startswith("scheduler/cli/"):
            continue
        for node in ast.walk(tree_of(path)):
            if spelled(node) & names:
                yield f"{name_of(path)}:{getattr(node, 'lineno', 0)}"


def spelled(node: ast.AST) -> set[str]:
    """Return the dotted names that a node mentions."""
    match node:
        case ast.Name(id=name):
            return {name}
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            return {f"{module}.{name}"}
        case ast.ImportFrom(module=str(module), names=aliases):
            return {f"{module}.{alias.name}" for alias in aliases}
    return set()


def test_the_scheduler_itself_needs_nothing_but_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"scheduler"}
    bare = [path for path in modules("scheduler") if is_bare(path)]
    assert len(bare) > 5
    foreign = {
        f"{name_of(path)}: {module}" for path in bare for module in imported(path) if module not in allowed
    }
    assert foreign == set()


def is_bare(path: Path) -> bool:
    """Whether a module is part of what installs without extras."""
    parts = name_of(path).split("/")
    return len(parts) == 2 or parts[1] in {"core", "runtime"}


def imported(path: Path) -> Iterator[str]:
    """Yield the top-level names of the absolute imports of a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    "pattern", [HOSTS, SETTINGS, PATHS], ids=["package hosts", "index settings", "paths"]
)
def test_no_file_names_a_machine_or_a_package_host(pattern: re.Pattern[str]) -> None:
    found = [f"{name_of(path)}: {hit[0]}" for path in files() if (hit := pattern.search(text_of(path)))]
    assert found == []


def text_of(path: Path) -> str:
    """Return what a file says; bytes that are no text count as blanks."""
    return path.read_bytes().decode("utf-8", errors="replace")


def test_the_patterns_find_what_they_are_for() -> None:
    assert HOSTS.search("https://" + "pypi" + ".org/simple")
    assert SETTINGS.search("--extra-" + "index" + "-url x")
    assert PATHS.search("see /" + "home/someone/x")
    assert not PATHS.search("see https://example.com/" + "home/x, docs/" + "work/x and ~/" + "work/x")
