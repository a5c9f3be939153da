"""What worker processes tell the process that measures: a file mapped into the memory of all of them.

Writing to it takes a worker less than a microsecond, and reading it does not disturb anybody.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import NS, Log, now

HEAD = 4
"""Cells of a worker before its log: when it was ready, when it ran its first job, how many it ran, unused."""

SPIN = 0.0002
"""Seconds between looks at what the other workers do."""

LONGEST = 1.0
"""Seconds for which a worker stands still for the others to get a job: there may be none left for them."""

START = 30.0
"""Seconds for which it waits for the others to come."""


class Board:
    """For each worker a few cells and a log of (nanosecond, number of the job)."""

    def __init__(self, path: Path, workers: int, room: int) -> None:
        self.path, self.workers, self.room = path, workers, room
        self._width = HEAD + 2 * room
        size = 8 * self._width * workers
        if not path.exists():
            with path.open("wb") as made:
                made.truncate(size)
        with path.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), size)
        self._cells = memoryview(self._map).cast("q")

    def words(self) -> list[str]:
        """What another process needs to open it."""
        return [str(self.path), str(self.workers), str(self.room)]

    # --- the workers' side ----------------------------------------------------------------------------------

    def ready(self, worker: int) -> None:
        """Worker `worker` is about to look for jobs: it waits for the others, so that all begin at once."""
        self._cells[worker * self._width] = now()
        self._stand_still(self.all_ready, START)

    def ran(self, worker: int, number: int) -> None:
        """Job `number` runs now. With its first job a worker waits until all workers have one.

        That stops the whole process, so that nobody works off what the others are to share.
        """
        cells, base, moment = self._cells, worker * self._width, now()
        done = cells[base + 2]
        if done == 0:
            cells[base + 1] = moment
            self._stand_still(self.all_begun, LONGEST)
        if done < self.room:
            cells[base + HEAD + 2 * done] = moment
            cells[base + HEAD + 2 * done + 1] = number
        cells[base + 2] = done + 1

    @staticmethod
    def _stand_still(condition: Callable[[], bool], seconds: float) -> None:
        end = now() + int(seconds * NS)
        while not condition() and now() < end:
            time.sleep(SPIN)

    # --- the measuring side ---------------------------------------------------------------------------------

    def all_ready(self) -> bool:
        """Whether all workers look for jobs."""
        return all(self._cells[worker * self._width] for worker in range(self.workers))

    def all_begun(self) -> bool:
        """Whether all workers have run a job."""
        return all(self._cells[worker * self._width + 1] for worker in range(self.workers))

    def begun(self) -> int:
        """When the last of the workers ran its first job."""
        return max(self._cells[worker * self._width + 1] for worker in range(self.workers))

    def count(self) -> int:
        """How many jobs were run so far, by all."""
        return sum(self._cells[worker * self._width + 2] for worker in range(self.workers))

    def log(self) -> Log:
        """When which job was run, in the order of time."""
        found: Log = []
        for worker in range(self.workers):
            base = worker * self._width
            for entry in range(min(self.room, self._cells[base + 2])):
                at = base + HEAD + 2 * entry
                found.append((self._cells[at], self._cells[at + 1]))
        return sorted(found)
