"""The repository as the project's tests see it."""

import ast
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("scheduler", "agent")
# Where there is no git to ask (an unpacked archive), these are not part of the project.
LEFT_OUT = {".git", ".venv", "build", "dist", "site", "__pycache__"}


def files() -> list[Path]:
    """Return every file that is, or could be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        return sorted(walk())
    return sorted(path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file())


def walk() -> Iterator[Path]:
    """Yield every file below the root that is not a product of a tool."""
    for folder, names, found in os.walk(ROOT):
        names[:] = [name for name in names if name not in LEFT_OUT and not name.endswith("_cache")]
        yield from (Path(folder, name) for name in found)


def modules(*folders: str) -> list[Path]:
    """Return the Python files below folders of the repository."""
    return [path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def name_of(path: Path) -> str:
    """Return the path as messages show it."""
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    """Parse a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))
