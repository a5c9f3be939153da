"""`waitline demo` and `waitline upstream`, as a user starts them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from typing import Any

import anthropic
import httpx2
import pytest

from tests.cli.conftest import COMMAND, Waitline, environment

pytestmark = pytest.mark.timeout(90)


def test_the_demo_shows_its_four_scenes(waitline: Waitline) -> None:
    """Strict: five answered, three refused with distinct times. Queued: all eight, in order, as promised.

    The exit status also judges times of this machine, which a test must not; the events are checked instead.
    """
    ended = waitline("demo", "--json")
    assert ended.returncode in (0, 1), ended.stderr
    events: list[dict[str, Any]] = [json.loads(line) for line in ended.stdout.splitlines()]
    summary = events.pop()
    assert summary["event"] == "summary"
    assert summary["answered"] == 5 + 8 + 16 + 8 + 208
    assert summary["refused"] == 3
    assert summary["in_order"] is True
    assert summary["ok"] is (ended.returncode == 0)
    assert summary["ok"] is (summary["promise_error_p99_s"] <= 3 * summary["bare_timer_p99_s"])
    strict = [event for event in events if event["scene"] == "strict"]
    blocked = [event["retry_after_s"] for event in strict if event["event"] == "refused"]
    assert [round(wait, 1) for wait in blocked] == [0.5, 1.0, 1.5]
    queued = [event for event in events if event["scene"] == "queued" and event["event"] == "accepted"]
    assert [round(event["promised_s"], 1) for event in queued] == [0, 0, 0, 0, 0, 0.5, 1.0, 1.5]
    for event in events:
        if event["event"] == "answered":
            assert event["waited_s"] >= event["promised_s"] - 1e-6
    noisy = [event for event in events if event["tenant"] == "noisy" and event["event"] == "answered"]
    assert [event["prompt"] for event in noisy] != []
    assert len(noisy) == 200


def test_the_demo_prints_tables_for_people(waitline: Waitline) -> None:
    """The words of the example that everyone knows, and a summary."""
    ended = waitline("demo")
    assert ended.returncode in (0, 1), ended.stderr
    for words in ("1. Eight prompts", "2. The same", "3. Two tenants", "4. A noisy"):
        assert words in ended.stdout
    # 500, 1000 and 1500 ms, less what this machine took from one prompt to the next.
    assert len(re.findall(r"BLOCKED - wait \d+ms", ended.stdout)) == 3
    assert "245 prompts answered, 3 refused" in ended.stdout


def test_prompts_that_fail_are_counted_and_the_status_says_so(waitline: Waitline) -> None:
    """A model that there is not: a row for each prompt, and a summary."""
    ended = waitline("demo", "--model", "gpt-4")
    assert ended.returncode == 1
    assert ended.stderr == ""
    assert "FAILED: " in ended.stdout
    assert "0 prompts answered, NOT in order, 3 refused" in ended.stdout
    assert "245 prompts failed." in ended.stdout


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    """As with ``| head -1``."""
    with subprocess.Popen(
        [*COMMAND, "demo", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_live_without_a_key_is_refused(waitline: Waitline) -> None:
    """No request leaves the machine by accident."""
    ended = waitline("demo", "--live")
    assert ended.returncode == 2
    assert "ANTHROPIC_API_KEY" in ended.stderr


def test_help_names_the_commands(waitline: Waitline) -> None:
    """A newcomer's first step."""
    ended = waitline("--help")
    assert ended.returncode == 0
    for command in ("demo", "run", "upstream"):
        assert command in ended.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_upstream_serves_until_it_is_told_to_end(tmp_path: Any, number: signal.Signals) -> None:
    """The printed address answers the real SDK; a signal ends it without a traceback."""
    config = tmp_path / "claude.toml"
    script = '[[scripts]]\ncontains = "ping"\ntext = "pong"\n'
    config.write_text('api_keys = ["any"]\n' + script + "[latency]\nttft_base_s = 0.0\n")
    process = subprocess.Popen(
        [*COMMAND, "upstream", "--port", "0", "--seed", "3", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    base_url = process.stdout.readline().split()[-1]
    assert "ANTHROPIC_API_KEY=(one of api_keys)" in process.stdout.readline()
    with (
        httpx2.Client(trust_env=False) as direct,
        anthropic.Anthropic(base_url=base_url, api_key="any", max_retries=0, http_client=direct) as client,
    ):
        reply = client.messages.create(
            model="claude-haiku-4-5", max_tokens=10, messages=[{"role": "user", "content": "ping"}]
        )
        assert reply.content[0].type == "text"
        assert reply.content[0].text == "pong"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("claude.toml", b"\x95", "can't decode byte 0x95"),
        ("claude.toml", b"x = " + b"[" * 50_000, "is nested too deeply"),
        ("claude.json", b"[" * 50_000, "is nested too deeply"),
    ],
)
def test_what_is_no_configuration_is_one_line(
    tmp_path: Any, waitline: Waitline, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    ended = waitline("upstream", "--port", 0, "--config", tmp_path / name)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"waitline: --config: {name}: ")
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("port", [-1, 99_999])
def test_a_port_that_there_is_not_is_named(waitline: Waitline, port: int) -> None:
    ended = waitline("upstream", "--port", port)
    assert ended.returncode == 2
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_bad_configuration_names_the_field(tmp_path: Any, waitline: Waitline) -> None:
    """The error is one line."""
    config = tmp_path / "claude.toml"
    config.write_text("[latency]\njitter = -1\n")
    ended = waitline("upstream", "--port", 0, "--config", config)
    assert ended.returncode == 2
    assert "jitter" in ended.stderr
    assert "Traceback" not in ended.stderr
