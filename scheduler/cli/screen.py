"""What a person sees while prompts run, and the summary after."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from scheduler.cli import printing
from scheduler.cli.printing import say, short

SHOWN = 12
"""Tenants in the live table: the ones with the most to do."""

SAMPLE = 100_000
"""Promise errors that a summary looks at: the last ones."""


STOPPING = "Stopping: waiting for the running prompts. Ctrl-C again cancels them."


@dataclass(slots=True)
class Row:
    """One tenant's counts."""

    left: int = 0
    waiting: int = 0
    running: int = 0
    done: int = 0


@dataclass(slots=True)
class Tally:
    """Counts of a run. Tenants are forgotten when they have nothing left."""

    total: int = 0
    before: int = 0
    done: int = 0
    failed: int = 0
    malformed: int = 0
    tenants: dict[str, Row] = field(default_factory=dict)
    late: Counter[str] = field(default_factory=Counter)
    errors: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLE))
    stopping: bool = False

    def begin(self, tenant: str, left: int) -> None:
        """A tenant's first prompt is about to join its line."""
        self.tenants[tenant] = Row(left)

    def joined(self, tenant: str) -> None:
        """A prompt joined its line."""
        self.tenants[tenant].waiting += 1

    def started(self, tenant: str) -> None:
        """A prompt left its line and was sent."""
        row = self.tenants[tenant]
        row.waiting -= 1
        row.running += 1

    def answered(self, tenant: str, started: bool) -> None:
        """A prompt was answered, which had been seen to start or not."""
        self.done += 1
        row = self.tenants[tenant]
        row.running -= started
        row.waiting -= not started
        self._over(tenant)

    def measured(self, waited: float, promised: float, causes: frozenset[str]) -> None:
        """What a prompt waited by the clock of this process, and what it was promised. Seconds."""
        self.late.update(map(str, causes))
        if promised > 0 and not causes:
            self.errors.append(abs(waited - promised))

    def refused(self, tenant: str, started: bool, joined: bool) -> None:
        """A prompt failed, after it had started, or while it waited, or before it joined."""
        self.failed += 1
        row = self.tenants[tenant]
        row.running -= started
        row.waiting -= joined and not started
        self._over(tenant)

    def _over(self, tenant: str) -> None:
        row = self.tenants[tenant]
        row.done += 1
        row.left -= 1
        if not row.left:
            del self.tenants[tenant]

    def table(self) -> Table:
        """The busiest tenants."""
        table = Table(box=None, padding=(0, 2), header_style="bold")
        table.add_column("tenant")
        for name in ("waiting", "running", "done", "left"):
            table.add_column(name, justify="right")
        busiest = sorted(self.tenants.items(), key=lambda item: -item[1].left)
        for tenant, row in busiest[:SHOWN]:
            table.add_row(
                Text(short(tenant)), str(row.waiting), str(row.running), str(row.done), str(row.left)
            )
        if len(busiest) > SHOWN:
            table.add_row(f"… and {len(busiest) - SHOWN} more", "", "", "", "")
        return table

    def summarise(self, out: Path) -> None:
        """Print what became of the prompts."""
        left = self.total - self.before - self.done - self.failed
        parts = [f"{self.done} answered"]
        parts += [f"{self.before} answered by an earlier run"] if self.before else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.malformed} malformed lines"] if self.malformed else []
        parts += [f"{left} left"] if left else []
        say(f"{', '.join(parts)}. Replies: {out}")
        if self.errors:
            middle, high = (milliseconds(quantile(self.errors, share)) for share in (0.5, 0.99))
            say(
                f"Promised against measured start: p50 {middle}, p99 {high}, "
                f"over {len(self.errors)} prompts that waited."
            )
        if self.late:
            causes = ", ".join(f"{cause} {count}" for cause, count in self.late.most_common())
            say(f"Started later than promised, by cause: {causes}.")
        if left:
            say("The same command goes on from here.")


@contextmanager
def watch(tally: Tally) -> Iterator[None]:
    """Show a tally on a terminal, ten times a second; elsewhere show nothing."""
    console = printing.console(errors=True)
    if not console.is_terminal:
        yield
        return
    progress = Progress(
        TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    bar = progress.add_task("", total=tally.total)

    def picture() -> RenderableType:
        progress.update(bar, completed=tally.before + tally.done + tally.failed)
        note = STOPPING if tally.stopping else ""
        return Group(progress, tally.table(), note)

    with live(picture, console):
        yield


@contextmanager
def live(picture: Callable[[], RenderableType], console: Console) -> Iterator[None]:
    """Redraw a picture from the running loop, so that no other thread touches what it shows."""
    loop = asyncio.get_running_loop()
    handles: deque[asyncio.TimerHandle] = deque(maxlen=1)
    with Live(picture(), console=console, auto_refresh=False, transient=True) as screen:

        def tick() -> None:
            screen.update(picture(), refresh=True)
            handles.append(loop.call_later(0.1, tick))

        tick()
        try:
            yield
        finally:
            handles[0].cancel()


def quantile(values: Sequence[float] | deque[float], share: float) -> float:
    """The value below which a share of the values lies: the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def milliseconds(seconds: float) -> str:
    """A duration in milliseconds."""
    return f"{seconds * 1e3:.3f} ms"
