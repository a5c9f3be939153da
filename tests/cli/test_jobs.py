"""`waitline worker`, `submit`, `migrate` and `jobs`, as a user starts them, over a real PostgreSQL."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.postgres import PostgresSessions
from scheduler.stores.postgres import PostgresStore
from tests.cli.conftest import COMMAND, DATABASE, Waitline, environment

pytestmark = pytest.mark.timeout(90)


@contextmanager
def working(dsn: str) -> Iterator[subprocess.Popen[str]]:
    """A worker that asks a simulated Claude, until the end of the block."""
    process = subprocess.Popen(
        [*COMMAND, "worker", "--simulated", "--concurrency", "4"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**{DATABASE: dsn}),
    )
    try:
        assert process.stderr is not None
        assert "runs up to 4 jobs" in process.stderr.readline()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_worker_answers_what_is_submitted_and_ends_on_sigterm(dsn: str, waitline: Waitline) -> None:
    with working(dsn) as process:
        ended = waitline("submit", "acme", "Say hi", "--key", "one", **{DATABASE: dsn})
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.strip()
        assert re.search(r"Job \d+ of acme: position 0, promised in 0.000 s", ended.stderr)
        again = waitline("submit", "acme", "Say hi", "--key", "one", **{DATABASE: dsn})
        assert again.stdout == ended.stdout
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 0, stderr
        assert "1 tries recorded" in stderr
        assert "Traceback" not in stderr


def test_a_conversation_goes_on_with_another_worker(dsn: str, waitline: Waitline) -> None:
    for number in (1, 2):
        with working(dsn):
            ended = waitline("submit", "acme", f"Say hi {number}", "--session", "chat", **{DATABASE: dsn})
            assert ended.returncode == 0, ended.stderr

    async def kept() -> list[str]:
        async with PostgresStore(dsn) as store:
            sessions = PostgresSessions(store)
            async with sessions.turn((await sessions.named("acme", "chat")).id) as turn:
                return [message["content"] for message in turn.history if message["role"] == "user"]

    assert asyncio.run(kept()) == ["Say hi 1", "Say hi 2"]


def test_jobs_are_listed_shown_cancelled_and_tried_again(dsn: str, waitline: Waitline) -> None:
    def ask(*arguments: object) -> subprocess.CompletedProcess[str]:
        return waitline(*arguments, **{DATABASE: dsn})

    ask("submit", "acme", "a secret prompt", "--no-wait")
    listed = ask("jobs", "list", "--tenant", "acme", "--state", "waiting")
    assert "waiting" in listed.stdout
    job = re.findall(r"^ *(\d+) +acme", listed.stdout, re.MULTILINE)[0]
    assert ask("jobs", "cancel", job).stdout == f"job {job} is cancelled\n"
    shown = ask("jobs", "show", job)
    assert "state: cancelled" in shown.stdout
    assert "secret" not in shown.stdout + listed.stdout
    assert ask("jobs", "retry", job).stdout == f"job {job} waits again\n"
    assert "state: waiting" in ask("jobs", "show", job).stdout
    for arguments, text in (
        (("jobs", "retry", job), f"there is none with id {job} that failed or was cancelled"),
        (("jobs", "show", 999), "there is none with id 999"),
        (("jobs", "show", "9" * 20), "there is none with id 99999999999999999999"),
        (("jobs", "retry", "9" * 20), "there is none with id 99999999999999999999"),
        (("jobs", "cancel", "9" * 20), "there is none with id 99999999999999999999"),
        (("jobs", "list", "--most", "9" * 20), "--most"),
        (("jobs", "list", "--most", "0"), "--most"),
        (("submit", "acme", "x", "--timeout", "1e10"), "--timeout: must be at most"),
        (("submit", "acme", "x", "--timeout", "-1"), "--timeout: must not be negative"),
        (("submit", "acme", "x", "--key", ""), "--key: must have 1 to 512 characters"),
        (("submit", "", "x"), "tenant: must not be empty"),
        (("submit", "acme", ""), "prompt: must not be empty"),
        (("worker", "--simulated", "--concurrency", "0"), "--concurrency"),
        (("worker", "--simulated", "--lease", "1e300"), "--lease: must be at most"),
        (("jobs", "list", "--state", "lost"), "--state: must be one of waiting, running"),
        (("submit", "acme", "x", "--rate", "nan"), "--rate, --burst"),
    ):
        ended = ask(*arguments)
        assert ended.returncode == 2
        assert text in ended.stderr
        assert "Traceback" not in ended.stderr


def test_odd_names_are_shown_and_not_obeyed(dsn: str, waitline: Waitline) -> None:
    """Markup of the library that prints, and escapes of the terminal."""
    for name, shown in (("[/acme]", "[/acme]"), ("\x1b[31mred", r"'\x1b[31mred'"), ("x" * 200, "x" * 200)):
        ended = waitline("submit", name, "hi", "--no-wait", **{DATABASE: dsn})
        assert ended.returncode == 0, ended.stderr
        assert f"of {shown}: position 0" in ended.stderr
        listed = waitline("jobs", "list", "--tenant", name, **{DATABASE: dsn}).stdout
        assert shown in listed.split()
        job = listed.splitlines()[1].split()[0]
        assert f"tenant: {shown}\n" in waitline("jobs", "show", job, **{DATABASE: dsn}).stdout
        listed += waitline("quotas", "show", name, **{DATABASE: dsn}).stdout
        assert "\x1b" not in ended.stderr + listed


def test_migrations_are_applied_once(empty_dsn: str, waitline: Waitline) -> None:
    first = waitline("migrate", **{DATABASE: empty_dsn})
    assert "applied 0001_lines.sql" in first.stdout, first.stderr
    assert waitline("migrate", **{DATABASE: empty_dsn}).stdout == "nothing to do\n"


def test_without_a_database_one_is_started_in_a_folder_that_is_printed(
    tmp_path: Path, waitline: Waitline
) -> None:
    ended = waitline("submit", "acme", "Say hi", "--no-wait", "--data", tmp_path / "pg")
    assert ended.returncode == 0, ended.stderr
    assert f"an embedded PostgreSQL in {tmp_path / 'pg'}" in ended.stderr
    assert "acme" in waitline("jobs", "list", "--data", tmp_path / "pg").stdout


def test_a_database_without_a_schema_is_one_line(empty_dsn: str, waitline: Waitline) -> None:
    for words in (("list",), ("show", "1"), ("retry", "1"), ("cancel", "1")):
        ended = waitline("jobs", *words, **{DATABASE: empty_dsn})
        assert ended.returncode == 2
        assert ended.stderr == (
            f'waitline: {DATABASE}: schema "waitline" does not exist: `waitline migrate` makes it\n'
        )


def test_sigterm_ends_a_submit_that_waits_and_its_database(tmp_path: Path, waitline: Waitline) -> None:
    """Nothing is left behind, and the job is there."""
    folder = tmp_path / "pg"
    command = [*COMMAND, "submit", "acme", "hi", "--data", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        while "position 0" not in process.stderr.readline():
            assert process.poll() is None
        assert (folder / "data" / "postmaster.pid").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 130
        assert "Traceback" not in process.stderr.read()
    assert not (folder / "data" / "postmaster.pid").exists()
    assert "waiting" in waitline("jobs", "list", "--data", folder).stdout


@pytest.mark.parametrize("place", ["127.0.0.1:1", "127.0.0.1:99999", "127.0.0.1:notaport", "[::1"])
def test_a_database_that_is_not_there_is_one_line(waitline: Waitline, place: str) -> None:
    ended = waitline("jobs", "list", **{DATABASE: f"postgresql://nobody@{place}/none"})
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"waitline: {DATABASE}: ")
    assert len(ended.stderr.strip().splitlines()) == 1


def test_what_asks_no_model_loads_no_sdk() -> None:
    """It takes longer than all the rest of such a command."""
    load = "from scheduler.cli import durable, gates, jobs, quotas; import sys; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", load], env=environment(), capture_output=True, check=True)
    assert b"scheduler.worker" in ended.stdout.split()
    assert b"anthropic" not in ended.stdout.split()
