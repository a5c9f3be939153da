"""What the processes of a scenario do: workers whose handlers keep a log, submitters, one that forgets."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scheduler import Answer, Job, Policy, Quota, Rate, Retry, Rung, Scheduler, Signal
from scheduler.stores.postgres import PostgresStore, forgetting
from scheduler.stores.postgres.connections import LOST
from scheduler.worker import Worker
from tests.faults.points import Trap

PATIENT = Policy(max_wait=None, max_queue=100_000)

LADDER = (Rung(after=0.1, gate="small"), Rung(after=0.3, defer="batch"))

OVERLOADED = 0.05
"""The share of calls behind a gate of which the upstream says that it is overloaded."""

REPEATED = 0.05
"""The share of tries that ask for another one, where they do."""


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
    holding: bool = False
    """Whether it kills itself only while it holds a grant."""
    lease: float = 1.0
    concurrency: int = 8
    max_attempts: int = 50
    longest: float = 0.01
    """Seconds that a handler sleeps at most."""
    rate: float = 100.0
    burst: int = 10
    slots: int | None = None
    gate_rate: float | None = None
    """Of the gate that all tenants share, if there is one."""
    gate_burst: int = 10
    gate_slots: int | None = None
    small_rate: float | None = None
    """Of a second gate, which jobs pass that would wait for long at the first; if they still do, they are
    deferred."""
    mixed: bool = False
    """Whether some jobs are of sessions, and some tries ask for another one."""
    keys: tuple[tuple[str, str], ...] = ()
    """Of a submitter: (tenant, key) of what it submits."""
    tenants: tuple[str, ...] = ()
    """Of a caller: for whom it asks. Of one that forgets: whom."""
    people: int = 24
    """Of a caller: how many ask at once."""

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Role:
        values = json.loads(line)
        lists = {"keys": tuple(map(tuple, values["keys"])), "tenants": tuple(values["tenants"])}
        return cls(**{**values, **lists})

    @property
    def quota(self) -> Quota:
        return Quota(Rate(self.rate, burst=self.burst), concurrency=self.slots)

    @property
    def gates(self) -> dict[str, Quota] | None:
        """The gates, if there are any. Whoever sets the stage declares them, and all others find them."""
        if self.gate_rate is None:
            return None
        gates = {"default": Quota(Rate(self.gate_rate, burst=self.gate_burst), concurrency=self.gate_slots)}
        if self.small_rate is not None:
            gates["small"] = Quota(Rate(self.small_rate, burst=5))
        return gates

    @property
    def policy(self) -> Policy:
        """Of jobs: however long they wait, with a ladder if there is a second gate."""
        return PATIENT if self.small_rate is None else replace(PATIENT, ladder=LADDER)


def session_of(key: str, mixed: bool) -> str | None:
    """The session of a job, the same whoever submits it: a third of them have one of three."""
    draw = random.Random(key)
    return f"s{draw.randrange(3)}" if mixed and draw.random() < 1 / 3 else None


class Log:
    """A file of JSON lines to which several processes append, each line in one piece."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, **values: Any) -> None:
        os.write(self._file, json.dumps(values).encode() + b"\n")


def trap_of(role: Role, ready: Callable[[], bool] = lambda: True, **renamed: str) -> Trap:
    """Set a process's trap, which notes when and where it springs."""
    kills = Log(Path(role.folder) / "kills")

    def note(point: str) -> None:
        kills.write(worker=role.name, point=point, at=time.time_ns())

    trap = Trap(role.point, role.nth, note, role.signal, ready)
    trap.install(**renamed)
    return trap


class Working:
    """A worker in a process of its own."""

    def __init__(self, role: Role) -> None:
        folder = Path(role.folder)
        self._role = role
        self._draw = random.Random(role.seed)
        self._starts, self._ends = Log(folder / "starts"), Log(folder / "ends")
        self._inside = 0
        self._trap = trap_of(role, lambda: self._inside > 0 or not role.holding)
        self._store = PostgresStore(role.dsn, lease=role.lease, migrate=False)
        self._worker = Worker(
            self._handle,
            self._store,
            concurrency=role.concurrency,
            max_attempts=role.max_attempts,
            name=role.name,
            deferred=self._handle,
        )

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
        self._inside += 1
        try:
            self._trap.passed("handler.start")
            await asyncio.sleep(self._draw.uniform(0, self._role.longest))
            self._trap.passed("handler.end")
        finally:
            self._inside -= 1
        self._ends.write(job=claim.id, tries=claim.tries, worker=self._role.name)
        if self._role.mixed and self._draw.random() < REPEATED:
            raise Retry(after=self._draw.choice([0.0, 0.05, 0.3]))
        if job.gate and not job.receipt.deferred:  # some answers take slots away, the others give them back
            short = self._draw.random() < OVERLOADED
            job.hear(Signal(Answer.OVERLOADED if short else Answer.ACCEPTED))
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


async def elsewhere(job: Job) -> None:
    """Nothing is run by whoever submits: workers take what is deferred."""


async def submit(role: Role) -> None:
    """Submit under keys, and note what was accepted. One call waits for its result until the process dies."""
    accepted = Log(Path(role.folder) / "accepted")
    trap_of(role)
    store = PostgresStore(role.dsn, migrate=False)
    plain = role.kind == "plain"  # without keys and slots: the database itself judges such jobs
    quota = Quota(role.quota.requests) if plain else role.quota
    policy = PATIENT if plain else role.policy
    async with Scheduler(store=store, quotas=quota, policy=policy, deferred=elsewhere) as scheduler:
        for tenant, key in role.keys:
            session = session_of(key, role.mixed and not plain)
            ticket = await scheduler.enqueue(tenant, key, key=None if plain else key, session=session)
            accepted.write(job=int(ticket.id), tenant=tenant, key=None if plain else key)
        if role.kind == "awaiter":
            await asyncio.gather(*(scheduler.submit(tenant, key, key=key) for tenant, key in role.keys))


async def forget(role: Role) -> None:
    """Forget tenants again and again, a few jobs to a transaction."""
    trap_of(role)
    forgetting.PAGE = 20
    async with PostgresStore(role.dsn, migrate=False) as store:
        for _ in range(50):
            for tenant in role.tenants:
                await store.forget(tenant)


async def play(role: Role) -> None:
    """Be what the role says until it is over; of callers, see `tests.faults.asking`."""
    if role.kind == "worker":
        await Working(role).run()
    elif role.kind == "forgetter":
        await forget(role)
    else:
        await submit(role)
