"""Running the command as a user does: as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stores.servers import Server, dsn, empty_dsn, running

__all__ = ["dsn", "empty_dsn"]

COMMAND = (sys.executable, "-m", "scheduler.cli")

DATABASE = "WAITLINE_DATABASE_URL"


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """One server: what differs between versions is tested beside the store."""
    return running(request.config, "18")


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: no key, no proxy, nothing of this machine's user."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
    return {**clean, "NO_PROXY": "127.0.0.1,localhost", "PYTHONDONTWRITEBYTECODE": "1", **more}


Waitline = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def waitline() -> Waitline:
    """Run ``waitline …`` to its end."""

    def run(*arguments: object, seconds: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=seconds,
            env=environment(**more),
            check=False,
        )

    return run


def write_lines(path: Path, lines: list[Any]) -> Path:
    """A file of JSON lines; strings are written as they are."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
