"""What the command line asked of `waitline run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scheduler import Policy, Quota, Rate
from scheduler.cli.usage import UsageError
from scheduler.core.quota import duration


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    file: Path
    out: Path
    rate: float
    burst: int
    strict: bool
    max_running: int
    timeout: float | None
    worker: bool = True
    lease: float = 30.0

    def quota(self) -> Quota:
        """The quota of every tenant."""
        try:
            return Quota(Rate(self.rate, burst=self.burst))
        except ValueError as error:
            raise UsageError(f"--rate {self.rate} --burst {self.burst}: {error}") from None

    def policy(self) -> Policy:
        """How long a prompt may wait: for ever, or not at all."""
        return Policy.strict() if self.strict else Policy(max_wait=None, max_queue=10**9)

    def check(self) -> None:
        """Refuse what cannot work before anything is touched."""
        self.quota()
        if self.max_running < 1:
            raise UsageError(f"--max-running: must be at least 1, got {self.max_running}")
        try:
            duration("--lease", self.lease)
            if self.timeout is not None:
                duration("--timeout", self.timeout)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if not self.file.is_file():
            raise UsageError(f"FILE: {self.file} is not a file")
        if self.out.resolve() == self.file.resolve():
            raise UsageError(f"--out: {self.out} is the file of prompts itself")
