"""Worker processes: started, waited for, ended."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.durable.board import Board
from benchmarks.durable.subjects.base import Load

ROOT = Path(__file__).resolve().parents[2]
TICK = 0.001
"""Seconds between looks at the board."""

PATIENCE = 60.0
"""Seconds that a worker may take until it looks for jobs."""


class WorkerEnded(Exception):
    """A worker process ended by itself."""


class Crew:
    """`workers` processes of a subject on one database, for the length of an ``async with`` block.

    `room`: how many jobs each of them logs.
    """

    def __init__(self, subject: str, dsn: str, load: Load, workers: int = 1, room: int = 0) -> None:
        self._subject, self._dsn, self._load, self._workers = subject, dsn, load, workers
        self._room = room
        self._running: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="waitline-bench-"))
        self.board = Board(self._folder / "board", self._workers, self._room)
        self._errors = (self._folder / "errors").open("w+b")
        self._start()
        try:
            async with asyncio.timeout(PATIENCE):
                await self.until(self.board.all_ready)
        except BaseException:
            self._end()
            raise
        return self

    def _start(self) -> None:
        load = json.dumps(self._load.__dict__)
        for number in range(self._workers):
            words = [self._subject, self._dsn, load, str(number), *self.board.words()]
            command = [sys.executable, "-m", "benchmarks.durable.work", *words]
            self._running.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdin=subprocess.PIPE,  # closed when this process ends, which ends them
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                )
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._errors.close()
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something on the board. Raises WorkerEnded if a worker gives up."""
        while not condition():
            if any(process.poll() is not None for process in self._running):
                self._errors.seek(0)
                said = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
                raise WorkerEnded(said[-1] if said else "it did not say why")
            await asyncio.sleep(TICK)

    async def ran(self, jobs: int) -> None:
        """Wait until so many jobs were run."""
        await self.until(lambda: self.board.count() >= jobs)
