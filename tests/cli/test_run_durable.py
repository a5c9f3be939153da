"""`waitline run --durable`: killed half-way and started again, every prompt is answered once."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, cast

import asyncpg
import httpx2
import pytest

from scheduler import Job, Retry
from scheduler.cli.options import Options
from scheduler.cli.prompts import Errand, answer_file
from tests.cli.conftest import COMMAND, DATABASE, Waitline, environment, read_lines, write_lines

pytestmark = pytest.mark.timeout(120)

COUNT, PACE = 40, ("--rate", "10", "--burst", "5")
"""Prompts of two tenants, which take two seconds."""

PATIENCE_S = 60.0


class Claude:
    """A simulated Claude in a process of its own, and its log."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.names = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "any"}

    def asked(self) -> Counter[str]:
        """How often each job was asked for."""
        return Counter(row["job"] for row in self._call("GET", f"requests?limit={10 * COUNT}"))

    def fail(self, tenant: str) -> None:
        """Have the requests of a tenant refused for good."""
        self._call("POST", "faults", [{"kind": "status", "status": 400, "match": {"tenant": tenant}}])

    def mend(self) -> None:
        """Answer everybody again."""
        self._call("DELETE", "faults")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        with httpx2.Client(trust_env=False) as client:
            answer = client.request(method, f"{self.url}/_sim/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def claude(tmp_path: Path) -> Iterator[Claude]:
    config = tmp_path / "claude.json"
    latency = {"ttft_base_s": 0.2, "prefill_tps": None, "decode_tps": None}
    config.write_text(json.dumps({"latency": latency, "reply_tokens": 3}))
    with started("upstream", "--port", "0", "--config", config, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield Claude(process.stdout.readline().split()[-1])


@contextmanager
def started(*words: object, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """Have ``waitline …`` run until the end of the block."""
    names = environment(**settings.pop("names", {}))
    with subprocess.Popen([*COMMAND, *map(str, words)], text=True, env=names, **settings) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = [{"tenant": f"t{number % 2}", "prompt": f"Say hi {number}"} for number in range(COUNT)]
    return write_lines(tmp_path / "p.jsonl", lines)


def kill_after(process: subprocess.Popen[str], out: Path, count: int) -> list[dict[str, Any]]:
    """Kill a command when so many replies are written; those that are."""
    end = monotonic() + PATIENCE_S
    while not out.exists() or out.read_bytes().count(b"\n") < count:
        assert monotonic() < end
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
            pytest.fail("it ended before it could be killed")
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = out.read_bytes()
    return [json.loads(line) for line in written.splitlines(keepends=True) if line.endswith(b"\n")]


async def jobs(dsn: str, columns: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [
            tuple(row) for row in await connection.fetch(f"select {columns} from waitline.job order by id")
        ]
    finally:
        await connection.close()


async def test_killed_with_its_worker_a_second_start_has_every_prompt_answered_once(
    dsn: str, claude: Claude, prompts: Path, waitline: Waitline
) -> None:
    """What was answered is not asked again; only what was under way when it was killed may be."""
    names = {DATABASE: dsn, **claude.names}
    command = ("run", prompts, "--durable", "--lease", "2", *PACE)
    out = prompts.with_name("p.jsonl.replies.jsonl")
    with started(*command, names=names) as process:
        kept = kill_after(process, out, COUNT // 3)
    cut = dict(await jobs(dsn, "id::text, state"))
    ended = waitline(*command, **names)
    assert ended.returncode == 0, ended.stderr
    replies = read_lines(out)
    assert replies[: len(kept)] == kept
    assert sorted(reply["line"] for reply in replies) == list(range(1, COUNT + 1))
    found = await jobs(dsn, "id::text, state, tries")
    assert [state for _, state, _ in found] == [2] * COUNT, "a job for each line, and no more"
    asked = claude.asked()
    assert asked.keys() == {job for job, _, _ in found}
    for job, _, tries in found:
        again = tries > 1
        assert asked[job] <= tries
        assert not again or cut[job] == 1, "only what ran when it was killed is run again"
        assert asked[job] == 1 or again


async def test_killed_beside_a_worker_nothing_is_asked_twice_and_nothing_is_lost(
    dsn: str, claude: Claude, prompts: Path, waitline: Waitline
) -> None:
    """Another process answers meanwhile: the second start picks up what it finds."""
    names = {DATABASE: dsn, **claude.names}
    command = ("run", prompts, "--durable", "--no-worker", *PACE)
    out = prompts.with_name("p.jsonl.replies.jsonl")
    with started("worker", names=names, stderr=subprocess.DEVNULL):
        with started(*command, names={DATABASE: dsn}) as process:
            kept = kill_after(process, out, COUNT // 3)
        ended = waitline(*command, **{DATABASE: dsn})
    assert ended.returncode == 0, ended.stderr
    assert f"{COUNT - len(kept)} answered, {len(kept)} answered by an earlier run" in ended.stdout
    replies = read_lines(out)
    assert sorted(reply["line"] for reply in replies) == list(range(1, COUNT + 1))
    assert {tries for (tries,) in await jobs(dsn, "tries")} == {1}
    assert sum(claude.asked().values()) == COUNT
    for reply in replies:
        assert reply["usage"]["output_tokens"] > 0
        assert 0 <= reply["waited_s"] <= reply["promised_s"] + PATIENCE_S
    out.unlink()
    assert waitline(*command, **{DATABASE: dsn}).returncode == 0
    assert sorted((r["line"], r["reply"]) for r in read_lines(out)) == sorted(
        (r["line"], r["reply"]) for r in replies
    )
    assert sum(claude.asked().values()) == COUNT, "all was there"


async def test_what_failed_is_tried_again_and_another_out_asks_again(
    dsn: str, claude: Claude, tmp_path: Path, waitline: Waitline
) -> None:
    """A failed job keeps its key: another try is another job."""
    file = write_lines(tmp_path / "p.jsonl", [{"tenant": t, "prompt": "Say hi"} for t in ("good", "bad")])
    names = {DATABASE: dsn, **claude.names}
    claude.fail("bad")
    for tries in (1, 2):
        ended = waitline("run", file, "--durable", **names)
        assert ended.returncode == 1, ended.stderr
        assert "1 failed" in ended.stdout
        assert [tenant for (tenant,) in await jobs(dsn, "tenant")].count("bad") == tries
    error = read_lines(file.with_name("p.jsonl.replies.jsonl"))[-1]["error"]
    assert error == {"type": "JobFailed", "message": "tenant 'bad': failed after 1 attempt: bad_request"}
    claude.mend()
    assert waitline("run", file, "--durable", **names).returncode == 0
    assert [tenant for (tenant,) in await jobs(dsn, "tenant")].count("good") == 1
    assert waitline("run", file, "--durable", "--out", tmp_path / "other", **names).returncode == 0
    assert [tenant for (tenant,) in await jobs(dsn, "tenant")].count("good") == 2


async def test_a_session_of_the_file_is_not_one_of_the_tenant_s_own(
    dsn: str, claude: Claude, tmp_path: Path, waitline: Waitline
) -> None:
    """The conversation of an application is neither continued nor ended, and the file's leaves nothing."""
    names = {DATABASE: dsn, **claude.names}
    file = write_lines(
        tmp_path / "p.jsonl", [{"tenant": "a", "session": "chat", "prompt": f"Say hi {n}"} for n in (1, 2)]
    )
    with started("worker", names=names, stderr=subprocess.DEVNULL):
        assert waitline("submit", "a", "Say hi", "--session", "chat", **{DATABASE: dsn}).returncode == 0
        assert waitline("run", file, "--durable", "--no-worker", **{DATABASE: dsn}).returncode == 0
    connection = await asyncpg.connect(dsn)
    kept = await connection.fetch("select name, turns from waitline.session")
    await connection.close()
    assert [tuple(row) for row in kept] == [("chat", 1)]
    first, second = read_lines(file.with_name("p.jsonl.replies.jsonl"))
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


def test_without_a_database_one_is_started_in_a_folder_that_is_printed(
    tmp_path: Path, waitline: Waitline
) -> None:
    file = write_lines(tmp_path / "p.jsonl", [{"tenant": "a", "prompt": "Say hi"}])
    ended = waitline("run", file, "--simulated", "--durable", "--data", tmp_path / "pg")
    assert ended.returncode == 0, ended.stderr
    assert f"an embedded PostgreSQL in {tmp_path / 'pg'}" in ended.stderr
    assert len(read_lines(tmp_path / "p.jsonl.replies.jsonl")) == 1


@pytest.mark.parametrize(
    ("database", "words"),
    [
        ("nonsense", f"{DATABASE}: invalid DSN"),
        ("postgresql://x@127.0.0.1:1/x", "Connect call failed"),
    ],
)
def test_a_bad_database_is_one_line(tmp_path: Path, waitline: Waitline, database: str, words: str) -> None:
    file = write_lines(tmp_path / "p.jsonl", [{"tenant": "a", "prompt": "Say hi"}])
    ended = waitline("run", file, "--simulated", "--durable", **{DATABASE: database})
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_missing_database_is_one_line(dsn: str, tmp_path: Path, waitline: Waitline) -> None:
    file = write_lines(tmp_path / "p.jsonl", [{"tenant": "a", "prompt": "Say hi"}])
    wrong = dsn.replace("/test_", "/none_")
    ended = waitline("run", file, "--simulated", "--durable", **{DATABASE: wrong})
    assert ended.returncode == 2
    assert "does not exist" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_prompt_that_goes_back_to_its_line_after_ctrl_c_is_left_for_the_next_start(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upstream refuses it while the command waits for what runs."""
    began, stopped = asyncio.Event(), asyncio.Event()
    errands: list[Errand] = []

    class Refusing:
        async def handle(self, job: Job) -> str:
            began.set()
            await stopped.wait()
            raise Retry(0.1, refused=True)

    class Upstream:
        @asynccontextmanager
        async def agent(self, **_: Any) -> AsyncIterator[tuple[Any, None]]:
            yield Refusing(), None

    class Noted(Errand):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            errands.append(self)

    monkeypatch.setattr("scheduler.cli.prompts.Errand", Noted)
    file = write_lines(tmp_path / "p.jsonl", [{"tenant": "t", "prompt": "x"}])
    options = Options(file, tmp_path / "r.jsonl", 100.0, 100, False, 4, None)
    running = asyncio.create_task(answer_file(cast("Any", Upstream()), options, dsn))
    await asyncio.wait_for(began.wait(), 30)
    errands[0]._stop()
    stopped.set()
    assert await asyncio.wait_for(running, 30) == 130
