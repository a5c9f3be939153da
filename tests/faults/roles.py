"""What the processes of a scenario do: a worker whose handler keeps a log, and a submitter."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scheduler import Job, Policy, Quota, Rate, Scheduler
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.connections import LOST
from scheduler.worker import Worker
from tests.faults.points import Trap

PATIENT = Policy(max_wait=None, max_queue=100_000)


@dataclass(frozen=True, kw_only=True)
class Role:
    """What one process is told to be. `point`, `nth`: where it kills itself."""

    name: str
    kind: str
    dsn: str
    folder: str
    seed: int = 0
    point: str | None = None
    nth: int = 1
    signal: int = 9
    lease: float = 1.0
    concurrency: int = 8
    max_attempts: int = 50
    longest: float = 0.01
    """Seconds that a handler sleeps at most."""
    rate: float = 100.0
    burst: int = 10
    slots: int | None = None
    keys: tuple[tuple[str, str], ...] = ()
    """Of a submitter: (tenant, key) of what it submits."""

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Role:
        values = json.loads(line)
        return cls(**{**values, "keys": tuple(map(tuple, values["keys"]))})

    @property
    def quota(self) -> Quota:
        return Quota(Rate(self.rate, burst=self.burst), concurrency=self.slots)


class Log:
    """A file of JSON lines to which several processes append, each line in one piece."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, **values: Any) -> None:
        os.write(self._file, json.dumps(values).encode() + b"\n")


class Working:
    """A worker in a process of its own."""

    def __init__(self, role: Role) -> None:
        folder = Path(role.folder)
        self._role = role
        self._draw = random.Random(role.seed)
        self._starts, self._ends = Log(folder / "starts"), Log(folder / "ends")
        self._kills = Log(folder / "kills")
        self._trap = Trap(role.point, role.nth, self._killed, role.signal)
        self._trap.install()
        self._store = PostgresStore(role.dsn, lease=role.lease, migrate=False)
        self._worker = Worker(
            self._handle,
            self._store,
            concurrency=role.concurrency,
            max_attempts=role.max_attempts,
            name=role.name,
        )

    def _killed(self, point: str) -> None:
        self._kills.write(worker=self._role.name, point=point, runs=len(self._worker._tries))

    async def _handle(self, job: Job) -> dict[str, Any]:
        now, wall = time.monotonic_ns(), time.time_ns()
        claim = job.claim  # type: ignore[attr-defined]
        granted = claim.lease - self._store.lease_ns
        self._starts.write(
            job=claim.id,
            tenant=job.tenant,
            tries=claim.tries,
            at=now,
            after_grant=wall - granted,
            after_slot=wall - claim.slot,
            worker=self._role.name,
        )
        self._trap.passed("handler.start")
        await asyncio.sleep(self._draw.uniform(0, self._role.longest))
        self._trap.passed("handler.end")
        self._ends.write(job=claim.id, tries=claim.tries, worker=self._role.name)
        return {"job": claim.id, "tries": claim.tries}

    async def run(self) -> None:
        while True:
            try:
                await self._worker.run()
                return
            except* (
                LOST
            ):  # a worker that starts while the database is down: whoever supervises it starts it again
                await asyncio.sleep(0.1)


async def submit(role: Role) -> None:
    """Submit under keys, and note what was accepted. One call waits for its result until the process dies."""
    folder = Path(role.folder)
    accepted, kills = Log(folder / "accepted"), Log(folder / "kills")
    trap = Trap(role.point, role.nth, lambda point: kills.write(worker=role.name, point=point, runs=0))
    trap.install()
    store = PostgresStore(role.dsn, migrate=False)
    async with Scheduler(store=store, quotas=role.quota, policy=PATIENT) as scheduler:
        for tenant, key in role.keys:
            ticket = await scheduler.enqueue(tenant, key, key=key)
            accepted.write(job=int(ticket.id), tenant=tenant, key=key)
        if role.kind == "awaiter":
            await asyncio.gather(*(scheduler.submit(tenant, key, key=key) for tenant, key in role.keys))


async def play(role: Role) -> None:
    """Be what the role says until it is over."""
    if role.kind == "worker":
        await Working(role).run()
    else:
        await submit(role)
