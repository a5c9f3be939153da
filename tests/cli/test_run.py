"""`waitline run` on small files: every line answered, malformed ones reported, stopped and continued.

What does not depend on where the prompts wait is tested with both: in memory, and in a database.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from agent import MemorySessions
from scheduler import Job
from scheduler.cli.options import Options
from scheduler.cli.prompts import answer_file
from tests.cli.conftest import COMMAND, DATABASE, Waitline, environment, read_lines, write_lines

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(params=["memory", "database"])
def lines(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    """Where prompts wait: the options that say so. The environment names the database."""
    if request.param == "memory":
        yield ()
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATABASE, request.getfixturevalue("dsn"))
        yield ("--durable",)


def test_every_line_is_answered_with_its_id_tenant_waits_and_usage(
    tmp_path: Path, waitline: Waitline, lines: tuple[str, ...]
) -> None:
    """Replies carry what a program needs to match them to their prompts."""
    prompts: list[dict[str, Any]] = [{"tenant": f"t{i % 3}", "prompt": f"Say hi {i}"} for i in range(12)]
    prompts += [{"tenant": "t0", "prompt": [{"type": "text", "text": "hello"}], "id": "mine"}]
    file = write_lines(tmp_path / "p.jsonl", prompts)
    ended = waitline("run", file, *lines, "--simulated", "--rate", 2, "--burst", 2)
    assert ended.returncode == 0, ended.stderr
    replies = read_lines(tmp_path / "p.jsonl.replies.jsonl")
    assert sorted(r["line"] for r in replies) == list(range(1, 14))
    assert {r["id"] for r in replies} == {"mine", *(f"line-{n}" for n in range(1, 13))}
    for reply in replies:
        assert reply["tenant"] == prompts[reply["line"] - 1]["tenant"]
        assert reply["reply"]
        # In a database a promise is later by as long as jobs ahead were due and not yet claimed.
        assert reply["waited_s"] >= (0 if lines else reply["promised_s"] - 1e-6)
        assert reply["usage"]["output_tokens"] > 0
        assert reply["usage"]["input_tokens"] > 0
    assert any(reply["promised_s"] > 0 for reply in replies)
    assert "13 answered" in ended.stdout


def test_malformed_lines_are_reported_by_number_and_stop_nobody(
    tmp_path: Path, waitline: Waitline, lines: tuple[str, ...]
) -> None:
    """Each bad line has its reason in both outputs; a second run does not say it twice."""
    file = write_lines(
        tmp_path / "p.jsonl",
        [
            {"tenant": "a", "prompt": "one"},
            "{not json",
            {"tenant": "", "prompt": "x"},
            {"tenant": "a"},
            {"tenant": "a", "prompt": "two", "id": "line-1"},
            [1, 2],
            {"tenant": "a", "prompt": "x", "session": 7},
            "",
            {"tenant": "a", "prompt": "three", "id": True},
            {"tenant": "b", "prompt": "four"},
            {"tenant": "a\0b", "prompt": "x"},
            {"tenant": "a", "prompt": "x", "session": ""},
            {"tenant": "a", "prompt": "x", "id": "\ud800"},
            '{"tenant": "a", "tenant": "b", "prompt": "x"}',
            '{"tenant": "a", "prompt": [{"type": "text", "text": NaN}]}',
            '{"tenant": "a", "prompt": ' + "[" * 50_000 + "]" * 50_000 + "}",
        ],
    )
    out = tmp_path / "replies.jsonl"
    for _ in range(2):
        ended = waitline("run", file, *lines, "--simulated", "--out", out)
        assert ended.returncode == 1
        replies = read_lines(out)
        assert sorted(r["line"] for r in replies if "reply" in r) == [1, 10]
        bad = {r["line"]: r["error"]["message"] for r in replies if "error" in r}
        assert sorted(bad) == [2, 3, 4, 5, 6, 7, 9, *range(11, 17)]
        assert len(replies) == 15
        assert '"tenant"' in bad[3]
        assert bad[14] == "names a field of an object twice"
        assert "NaN" in bad[15]
        assert '"prompt"' in bad[4]
        assert "'line-1'" in bad[5]
        for number in bad:
            assert f"line {number}: " in ended.stderr


def test_a_prompt_that_cannot_be_sent_stops_nobody(
    tmp_path: Path, waitline: Waitline, lines: tuple[str, ...]
) -> None:
    """Whatever its error is: a number that JSON has not, or content too deep for whoever copies it."""
    deep = "[" * 800 + "]" * 800
    file = write_lines(
        tmp_path / "p.jsonl",
        [
            '{"tenant": "a", "prompt": [1e999]}',
            f'{{"tenant": "a", "prompt": [{deep}]}}',
            {"tenant": "a", "prompt": "hi"},
            {"tenant": "b", "prompt": "hi"},
        ],
    )
    ended = waitline("run", file, *lines, "--simulated")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "2 answered, 2 failed" in ended.stdout
    replies = {reply["line"]: reply for reply in read_lines(tmp_path / "p.jsonl.replies.jsonl")}
    assert "prompt: must be JSON content" in replies[1]["error"]["message"]
    assert "[[" not in replies[2]["error"]["message"]
    assert "reply" in replies[3]
    assert "reply" in replies[4]


def test_files_that_differ_in_their_ending_have_replies_of_their_own(
    tmp_path: Path, waitline: Waitline
) -> None:
    for name in ("p.jsonl", "p.txt", "p"):
        file = write_lines(tmp_path / name, [{"tenant": "a", "prompt": f"Say hi to {name}"}])
        assert "1 answered. " in waitline("run", file, "--simulated").stdout
        assert len(read_lines(tmp_path / f"{name}.replies.jsonl")) == 1


def test_strict_refuses_what_cannot_start(tmp_path: Path, waitline: Waitline, lines: tuple[str, ...]) -> None:
    """Burst 5 of eight start; the others are errors that say when to come back, each another time."""
    file = write_lines(tmp_path / "p.jsonl", [{"tenant": "a", "prompt": f"Say hi {i}"} for i in range(8)])
    ended = waitline("run", file, *lines, "--simulated", "--strict", "--rate", 0.01)
    assert ended.returncode == 1
    replies = read_lines(tmp_path / "p.jsonl.replies.jsonl")
    errors = [r["error"] for r in replies if "error" in r]
    assert len(replies) - len(errors) == 5
    assert {error["type"] for error in errors} == {"ErrRateLimited"}
    assert len({round(error["retry_after_s"]) for error in errors}) == 3
    assert max(error["retry_after_s"] for error in errors) <= 300


def test_a_session_goes_on_in_a_second_run_where_it_stopped(
    tmp_path: Path, waitline: Waitline, lines: tuple[str, ...]
) -> None:
    """What was said before the stop is upstream again: the second prompt's input is larger than its own."""
    first = {"tenant": "a", "session": "s", "prompt": "word " * 200}
    second = {"tenant": "a", "session": "s", "prompt": "again"}
    out = tmp_path / "r.jsonl"
    file = write_lines(tmp_path / "p.jsonl", [first])
    assert waitline("run", file, *lines, "--simulated", "--out", out).returncode == 0
    write_lines(file, [first, second])
    assert waitline("run", file, *lines, "--simulated", "--out", out).returncode == 0
    replies = read_lines(out)
    assert [r["line"] for r in replies] == [1, 2]
    assert replies[1]["usage"]["input_tokens"] > replies[0]["usage"]["input_tokens"]


def test_a_reply_cut_short_by_a_kill_is_had_again(
    tmp_path: Path, waitline: Waitline, lines: tuple[str, ...]
) -> None:
    """A half-written last line is dropped, and only its prompt is looked after again."""
    file = write_lines(tmp_path / "p.jsonl", [{"tenant": "a", "prompt": f"{i}"} for i in range(3)])
    out = tmp_path / "p.jsonl.replies.jsonl"
    assert waitline("run", file, *lines, "--simulated").returncode == 0
    whole = out.read_text()
    out.write_text(whole[:-10])
    ended = waitline("run", file, *lines, "--simulated")
    assert ended.returncode == 0
    assert "1 answered, 2 answered by an earlier run" in ended.stdout
    assert len(read_lines(out)) == 3


def test_ctrl_c_keeps_what_is_finished_and_a_second_run_does_the_rest(
    tmp_path: Path, waitline: Waitline, lines: tuple[str, ...]
) -> None:
    """SIGINT in the middle: status 130, whole lines only, and nothing is answered twice in the end."""
    count = 30
    file = write_lines(tmp_path / "p.jsonl", [{"tenant": "a", "prompt": f"Say hi {i}"} for i in range(count)])
    out = tmp_path / "p.jsonl.replies.jsonl"
    command = [*COMMAND, "run", str(file), *lines, "--simulated", "--rate", "10", "--burst", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 6):
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    assert b"The same command goes on from here." in stdout
    kept = read_lines(out)
    assert 6 <= len(kept) < count
    assert waitline("run", file, *lines, "--simulated", "--rate", 100).returncode == 0
    replies = read_lines(out)
    assert replies[: len(kept)] == kept
    assert sorted(r["line"] for r in replies) == list(range(1, count + 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", "nan"], "--rate nan"),
        (["--rate", "0"], "--rate 0"),
        (["--burst", "0"], "burst: must be at least 1"),
        (["--max-running", "0"], "--max-running"),
        (["--timeout", "-1"], "--timeout: must not be negative"),
        (["--timeout", "1e300"], "--timeout: must be at most"),
        (["--durable", "--lease", "1e300"], "--lease: must be at most"),
        (["--model", ""], "--model"),
        (["--no-such-option"], "--no-such-option"),
        (["--durable", "--lease", "0"], "--lease"),
        (["--no-worker"], "--no-worker: needs --durable"),
        (["--data", "."], "--data: needs --durable"),
    ],
)
def test_a_bad_option_is_one_line_without_a_traceback(
    tmp_path: Path, waitline: Waitline, arguments: list[str], words: str
) -> None:
    """Status 2, the option and its value named, and nothing written."""
    file = write_lines(tmp_path / "p.jsonl", [{"tenant": "a", "prompt": "x"}])
    ended = waitline("run", file, "--simulated", *arguments)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "p.jsonl.replies.jsonl").exists()


def test_without_a_key_the_real_api_is_not_asked(tmp_path: Path, waitline: Waitline) -> None:
    """The error names what is missing."""
    file = write_lines(tmp_path / "p.jsonl", [{"tenant": "a", "prompt": "x"}])
    ended = waitline("run", file)
    assert ended.returncode == 2
    assert "ANTHROPIC_API_KEY" in ended.stderr


def test_a_file_that_is_not_there_or_not_replies_is_refused(tmp_path: Path, waitline: Waitline) -> None:
    """Nothing is overwritten that is not ours."""
    assert "is not a file" in waitline("run", tmp_path / "none.jsonl", "--simulated").stderr
    file = write_lines(tmp_path / "p.jsonl", [{"tenant": "a", "prompt": "x"}])
    other = tmp_path / "precious.txt"
    other.write_text("my thesis\n")
    ended = waitline("run", file, "--simulated", "--out", other)
    assert ended.returncode == 2
    assert other.read_text() == "my thesis\n"
    assert waitline("run", file, "--simulated", "--out", file).returncode == 2
    assert read_lines(file) == [{"tenant": "a", "prompt": "x"}]


def test_prompts_reach_neither_terminal_nor_errors(tmp_path: Path, waitline: Waitline) -> None:
    """Law 14: a prompt that cannot be sent is told by its number and size."""
    marker = "tell-nobody"
    file = write_lines(
        tmp_path / "p.jsonl",
        [{"tenant": "a", "prompt": marker}, {"tenant": "", "prompt": marker}, json.dumps(marker)],
    )
    ended = waitline("run", file, "--simulated", "--strict")
    assert marker not in ended.stdout + ended.stderr + (tmp_path / "p.jsonl.replies.jsonl").read_text()


async def test_an_error_that_holds_a_prompt_is_told_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law 14: nobody knows what is in the text of a handler's own error."""
    marker = "tell-nobody"

    class Telling:
        sessions = MemorySessions()

        async def handle(self, job: Job) -> str:
            raise ValueError(job.prompt)

    class Upstream:
        @asynccontextmanager
        async def agent(self) -> AsyncIterator[tuple[Any, None]]:
            yield Telling(), None

    file = write_lines(tmp_path / "p.jsonl", [{"tenant": "a", "prompt": marker}] * 2)
    out = tmp_path / "r.jsonl"
    assert await answer_file(cast("Any", Upstream()), Options(file, out, 2.0, 5, False, 4, None)) == 1
    error = {"type": "ValueError", "message": "tenant 'a': failed with ValueError"}
    assert [reply["error"] for reply in read_lines(out)] == [error, error]
    shown = capsys.readouterr()
    assert marker not in shown.out + shown.err + out.read_text()
