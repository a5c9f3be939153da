"""Workers as processes that claim when they are told to: ``python -m tests.conformance.processes DSN``.

A command is a line of JSON, an answer a line of base64 around a pickle.
"""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import subprocess
import sys

from scheduler.stores.postgres.claiming import Claimed
from tests.conformance.stored import VirtualStore


class Claimer:
    """A process that claims."""

    def __init__(self, dsn: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.processes", dsn],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def claim(self, now: int, worker: str, slots: int) -> Claimed | None:
        """Have it claim, and wait for what it found. Blocks: ask it in a thread."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self._process.stdin.write(json.dumps([now, worker, slots]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a claimer ended with code {self._process.wait()}")
        found: Claimed | None = pickle.loads(base64.b64decode(answer))
        return found

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


async def serve(dsn: str) -> None:
    """Claim what standard input says, until it ends."""
    async with VirtualStore(dsn, connections=1, lease=1e7, migrate=False) as store:
        while line := await asyncio.to_thread(sys.stdin.readline):
            store.now, worker, slots = json.loads(line)
            if not store.hearing.gates:  # they were declared after this process began
                await store.hearing.look()
            found = await store.claim(worker, slots)
            print(base64.b64encode(pickle.dumps(found)).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
