"""Durable lines at work: prompts wait in PostgreSQL while a worker is killed and the database is restarted.

Starts an embedded PostgreSQL, a simulated Claude, two workers and a submitter, each a process of its own. A
worker is killed in the midst of its calls, another one takes its place, the database is killed and started
again. The status is 0 only if every prompt was answered once, first starts were in order tenant by tenant,
and the log of the simulated Claude shows that nobody was above its rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from agent import Reply
from scheduler import Policy, Quota, Rate, Scheduler
from scheduler.cli.usage import DEFAULT_MODEL
from scheduler.cli.wiring import Upstream
from scheduler.stores.postgres import PostgresStore
from scheduler.stores.postgres.embedded import Embedded
from scheduler.worker import Worker

PROMPTS, TENANTS = 500, 20
RATE, BURST = 1.0, 5
LEASE = 3.0
CATCH_UP = max(0.05, 1 / RATE)
"""Seconds by which a late grant may reach back: 50 ms, or the time of one permit where that is more."""

KILL_AT, RESTART_AT = 0.45, 0.65
"""Parts of the prompts that are answered when a worker is killed, and when the database is."""

PATIENCE = 120.0
"""Seconds for all of it."""

NS = 1_000_000_000
Row = dict[str, Any]

# --- the processes ----------------------------------------------------------------------------------------


async def work(dsn: str, log: str) -> None:
    """Be a worker: `Agent.handle` for each job, and a line for each start."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    store = PostgresStore(dsn, lease=LEASE)
    async with Upstream(simulated=False, model=DEFAULT_MODEL, max_tokens=64).agent() as (agent, _):

        async def handle(job: Any) -> Reply:
            now, wall = time.monotonic_ns(), time.time_ns()
            granted = now - (wall - (job.claim.lease - store.lease_ns))
            start = {"job": job.id, "tenant": job.tenant, "tries": job.tries, "at": now, "granted": granted}
            os.write(file, json.dumps(start).encode() + b"\n")
            return await agent.handle(job)

        await Worker(handle, store, concurrency=128, name=str(os.getpid())).run()


async def submit(dsn: str, out: str) -> None:
    """Be the submitter: commit all prompts, and write down each reply as it comes."""
    owners = [f"tenant-{number % TENANTS:02}" for number in range(PROMPTS)]
    random.Random(7).shuffle(owners)
    quota, policy = Quota(Rate(RATE, burst=BURST)), Policy(max_wait=None)
    with Path(out).open("a", buffering=1) as file:  # noqa: ASYNC230 - there is nothing else to do meanwhile
        async with Scheduler(store=PostgresStore(dsn), quotas=quota, policy=policy) as scheduler:
            tickets = await asyncio.gather(
                *(scheduler.enqueue(owner, f"Say hi {n}", key=str(n)) for n, owner in enumerate(owners))
            )

            async def answer(number: int) -> None:
                reply = await tickets[number].result()
                row = {"number": number, "job": tickets[number].id, "tenant": owners[number]}
                file.write(json.dumps({**row, "characters": len(reply.text)}) + "\n")

            await asyncio.gather(*map(answer, range(PROMPTS)))


# --- the stage --------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[Row]:
    """The lines of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ask(dsn: str, query: str) -> list[tuple[Any, ...]]:
    """Rows from the database."""

    async def fetch() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(dsn)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(fetch())


class Stage:
    """The processes, and what happened to them."""

    def __init__(self, folder: Path, server: Embedded, stack: ExitStack) -> None:
        self.server = server
        self.starts, self.replies = folder / "starts", folder / "replies"
        self.began = time.monotonic()
        self._stack = stack
        self._environment = {**os.environ, "ANTHROPIC_API_KEY": "any", "NO_PROXY": "127.0.0.1,localhost"}
        self.url = self._upstream(folder / "claude.json")
        self._environment["ANTHROPIC_BASE_URL"] = self.url

    def say(self, text: str) -> None:
        """Tell what happens, and when."""
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def start(self, *words: str, **settings: Any) -> subprocess.Popen[str]:
        """Start a process, which will not outlive this one."""
        process = subprocess.Popen(
            [sys.executable, *words], env=self._environment, text=True, stdin=subprocess.DEVNULL, **settings
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def role(self, name: str, file: Path) -> subprocess.Popen[str]:
        """Start this program as a worker or the submitter."""
        return self.start(__file__, "--role", name, self.server.dsn, str(file))

    def _upstream(self, config: Path) -> str:
        latency = {"ttft_base_s": 0.3, "prefill_tps": None, "decode_tps": 200.0}
        config.write_text(json.dumps({"latency": latency, "reply_tokens": 20}))
        command = ("-m", "scheduler.cli", "upstream", "--port", "0", "--config", str(config))
        process = self.start(*command, stdout=subprocess.PIPE)
        assert process.stdout is not None  # noqa: S101 - for mypy: it was asked for
        if not (words := process.stdout.readline().split()):
            raise SystemExit(f"the simulated Claude does not start: status {process.wait()}")
        return words[-1]

    def kill_the_busier(self, workers: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
        """Kill the worker that is in the midst of more calls; the one that takes its place."""
        held: dict[str, int] = {}
        query = "select worker, count(*) from waitline.job where state = 1 group by worker"
        while max(held.values(), default=0) < 4:  # a moment at which it matters
            self.check(f"only {max(held.values(), default=0)} calls were under way at a time")
            held = dict(ask(self.server.dsn, query))
        busier = max(workers, key=lambda worker: held.get(str(worker.pid), 0))
        busier.send_signal(signal.SIGKILL)
        busier.wait()
        workers.remove(busier)
        self.say(f"worker {busier.pid} killed in the midst of {held.get(str(busier.pid))} calls")
        fresh = self.role("worker", self.starts)
        self.say(f"worker {fresh.pid} started in its place")
        return fresh

    def until_answered(self, part: float, submitter: subprocess.Popen[str]) -> None:
        """Wait until so many prompts are answered."""
        while len(rows_of(self.replies)) < part * PROMPTS:
            if submitter.poll() is not None and part < 1:
                raise SystemExit(f"the submitter ended too early, with status {submitter.returncode}")
            self.check(f"only {len(rows_of(self.replies))} prompts were answered")
            time.sleep(0.05)

    def check(self, state: str) -> None:
        """End it all when it takes too long."""
        if time.monotonic() - self.began > PATIENCE:
            raise SystemExit(f"{state} in {PATIENCE} s")

    def log(self) -> list[Row]:
        """What arrived at the simulated Claude."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.url}/_sim/requests?limit={4 * PROMPTS}") as answer:
            return list(json.load(answer))


@contextmanager
def opened() -> Iterator[Stage]:
    """Start what all of it needs."""
    with tempfile.TemporaryDirectory(prefix="waitline-demo-") as name, ExitStack() as stack:
        server = stack.enter_context(Embedded(Path(name) / "database"))
        yield Stage(Path(name), server, stack)


# --- the judgement ----------------------------------------------------------------------------------------


def above_rate(arrivals: Sequence[int], allowance: float) -> float:
    """By how many permits some interval holds more than burst + rate · (its length + `allowance`)."""
    worst, least, first = 0.0, float("inf"), min(arrivals)
    for count, at in enumerate(sorted(arrivals)):
        level = count - RATE * (at - first) / NS
        least = min(least, level)
        worst = max(worst, level - least + 1)
    return worst - BURST - RATE * allowance


def out_of_order(replies: Sequence[Row], starts: Sequence[Row]) -> list[str]:
    """Tenants whose prompts did not first start in the order in which they were submitted."""
    number = {row["job"]: row["number"] for row in replies}
    firsts: dict[str, list[int]] = defaultdict(list)
    for row in sorted(starts, key=lambda row: int(row["at"])):
        if row["tries"] == 1:
            firsts[row["tenant"]].append(number[row["job"]])
    return [tenant for tenant, numbers in firsts.items() if numbers != sorted(numbers)]


def judge(stage: Stage) -> bool:
    """Print what was found, and whether all of it holds."""
    replies, starts, log = rows_of(stage.replies), rows_of(stage.starts), stage.log()
    query = "select count(*) filter (where state = 2), count(*) from waitline.job"
    [recorded] = ask(stage.server.dsn, query)
    once = sorted(row["number"] for row in replies) == list(range(PROMPTS)) and recorded == (PROMPTS, PROMPTS)
    disorder = out_of_order(replies, starts)
    late = [row["job"] for row in starts if row["tries"] > 1]
    unseen = len({row["job"] for row in starts} - {row["job"] for row in starts if row["tries"] == 1})

    granted: dict[str, list[int]] = defaultdict(list)
    for row in sorted(starts, key=lambda row: int(row["at"])):
        granted[row["job"]].append(row["granted"])
    arrivals: dict[str, list[int]] = defaultdict(list)
    first: dict[str, int] = {}
    for row in log:
        arrivals[row["tenant"]].append(row["arrival_ns"])
        first.setdefault(row["job"], row["arrival_ns"])
    lags = sorted((at - granted[job][0]) / NS for job, at in first.items())
    lag = lags[int(0.99 * len(lags))]
    excess = max(above_rate(times, CATCH_UP + lag) for times in arrivals.values())

    checks = {
        f"{len(replies)} prompts answered, {recorded[0]} results recorded, each once": once,
        f"first starts in order for {TENANTS - len(disorder)} of {TENANTS} tenants": not disorder,
        f"all {len(arrivals)} tenants within {BURST} + {RATE:g}/s by the upstream's log, repeats included "
        f"(p99 from grant to arrival {1000 * lag:.0f} ms)": excess <= 0 and len(arrivals) == TENANTS,
    }
    print(f"\nThe simulated Claude saw {len(log)} requests for {len(first)} prompts.")
    print(f"Repeated: {len(late)} tries, of which {len(log) - len(first)} had reached it before.")
    if unseen:
        print(f"{unseen} prompts were granted to the killed worker, and had not started when it died.")
    for text, holds in checks.items():
        print(f"{'holds' if holds else 'BROKEN':>6}: {text}")
    return all(checks.values())


def show() -> bool:
    """Play it, and judge."""
    print(f"{PROMPTS} prompts of {TENANTS} tenants, each at {RATE:g}/s with a burst of {BURST}.")
    with opened() as stage:
        stage.say("PostgreSQL and the simulated Claude are up")
        asyncio.run(migrate(PostgresStore(stage.server.dsn)))
        workers = [stage.role("worker", stage.starts) for _ in range(2)]
        submitter = stage.role("submitter", stage.replies)
        stage.say(f"workers {workers[0].pid} and {workers[1].pid} and submitter {submitter.pid} started")
        stage.until_answered(KILL_AT, submitter)
        workers.append(stage.kill_the_busier(workers))
        stage.until_answered(RESTART_AT, submitter)
        os.kill(int((stage.server.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        stage.say("the database killed")
        stage.server.start()
        stage.say("the database started again")
        stage.until_answered(1, submitter)
        submitter.wait(PATIENCE)
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        statuses = [worker.wait(PATIENCE) for worker in workers]
        stage.say(f"all answered; the workers were asked to stop and ended with status {statuses}")
        return judge(stage) and submitter.returncode == 0 and statuses == [0, 0]


async def migrate(store: PostgresStore) -> None:
    """Make the schema, so that nobody has to wait for it later."""
    async with store:
        pass


def main() -> int:
    """Show it, or be one of its processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--role", nargs=3, metavar=("NAME", "DSN", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role is None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # or it leaves processes behind
        return 0 if show() else 1
    name, dsn, file = options.role
    asyncio.run((work if name == "worker" else submit)(dsn, file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
