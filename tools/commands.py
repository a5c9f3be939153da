"""Commands that do not outlive the program that runs them: they end at a limit, and with it."""

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType


class Commands:
    """Commands under way, each with all that it starts. Any number of threads may run one."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def run(
        self, command: list[str], cwd: Path, environment: Mapping[str, str], limit_s: float
    ) -> tuple[int, str]:
        """Run a command and return its exit code and its output. Raises TimeoutExpired at the limit."""
        with subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            self._running.add(process)
            try:
                output, _ = process.communicate(timeout=0 if self._ended else limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                raise
            finally:
                self._running.discard(process)
        return process.returncode, output

    def end(self, _number: int, _frame: FrameType | None) -> None:
        """On a signal: end them all, and whoever waits for them."""
        self._ended = True
        for process in tuple(self._running):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        raise KeyboardInterrupt
