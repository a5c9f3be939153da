"""The harness's side of the nursery: processes that are started, signalled and waited for."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.roles import Role

ROOT = Path(__file__).resolve().parent.parent.parent


class Process:
    """A process of a scenario."""

    def __init__(self, role: Role) -> None:
        loop = asyncio.get_running_loop()
        self.role = role
        self.pid: asyncio.Future[int] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it has begun and is not over."""
        if self.pid.done() and not self.ended.done():
            with suppress(ProcessLookupError):  # over, and not yet told
                os.kill(self.pid.result(), number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await asyncio.shield(self.ended)


class Processes:
    """All processes of a scenario; leaving the block kills what is left of them."""

    def __init__(self, errors: Path) -> None:
        self._errors = errors
        self._named: dict[str, Process] = {}

    async def __aenter__(self) -> Self:
        with self._errors.open("ab") as errors:
            self._nursery = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.faults.nursery",
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery.stdin is not None
        self._nursery.stdin.close()
        await self._nursery.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._nursery.stdout is not None
        async for line in self._nursery.stdout:
            what, name, number = line.split()
            process = self._named[name.decode()]
            future = process.pid if what == b"started" else process.ended
            if not future.done():  # or whoever waited for it was cancelled
                future.set_result(int(number))

    async def start(self, role: Role) -> Process:
        assert self._nursery.stdin is not None
        process = self._named[role.name] = Process(role)
        self._nursery.stdin.write(role.line())
        await process.pid
        return process

    @property
    def alive(self) -> list[Process]:
        return [process for process in self._named.values() if not process.ended.done()]
