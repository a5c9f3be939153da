"""Configuration: from code, JSON and TOML, with errors that name the field and the value."""

import asyncio
import traceback
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic

from scheduler.testing import (
    ClaudeConfig,
    ConfigError,
    Fault,
    Latency,
    Limits,
    Match,
    Script,
    ToolCall,
    damage,
    effects,
    serve,
)  # fmt: skip
from tests.testing.claude_client import create

EXAMPLE_TOML = """
time_scale = 0.05
reply_tokens = 20
record_headers = ["x-extra"]

[latency]
ttft_base_s = 1
decode_tps = 40.0
capacity = 10

[limits]
requests_per_minute = 1000
burst_s = 1

[class_limits.claude-fable-5]
requests_per_minute = 50

[[scripts]]
contains = "weather"
has_tool_result = false
tools = [{ name = "weather", input = { city = "Oslo" } }]

[[faults]]
kind = "stall"
after_chunks = 3
seconds = 20
keep_alive = "ping"
times = 2
match = { tenant = "acme", probability = 0.5 }

[[faults]]
kind = "reset_before_head"
"""

EXAMPLE = ClaudeConfig(
    time_scale=0.05,
    reply_tokens=20,
    record_headers=("x-extra",),
    latency=Latency(ttft_base_s=1.0, decode_tps=40.0, capacity=10),
    limits=Limits(requests_per_minute=1000, burst_s=1.0),
    class_limits={"claude-fable-5": Limits(requests_per_minute=50)},
    scripts=(
        Script(
            contains="weather",
            has_tool_result=False,
            tools=(ToolCall(name="weather", input={"city": "Oslo"}),),
        ),
    ),
    faults=(
        Fault(
            damage.Stall(3, seconds=20.0, keep_alive="ping"), Match(tenant="acme", probability=0.5), times=2
        ),
        Fault(effects.ResetBeforeHead()),
    ),
)


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "claude.toml"
    path.write_text(EXAMPLE_TOML)
    assert ClaudeConfig.load(path) == EXAMPLE


def test_a_json_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "claude.json"
    path.write_text('{"latency": {"decode_tps": null}, "faults": [{"kind": "slow_headers", "seconds": 2}]}')
    config = ClaudeConfig.load(path)
    assert config.latency == Latency(decode_tps=None)
    assert config.faults == (Fault(effects.SlowHeaders(2.0)),)


@pytest.mark.parametrize("name", ["claude.toml", "claude.json"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{[")
    with pytest.raises(ConfigError, match=name):
        ClaudeConfig.load(tmp_path / name)


def test_a_configuration_survives_being_written_and_read() -> None:
    table = EXAMPLE.to_mapping()
    assert ClaudeConfig.from_mapping(table) == EXAMPLE


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (5, "config: expected a table of fields, got 5"),
        ({"speed": 1}, r"config\.speed: unknown field"),
        ({"time_scale": "fast"}, r"config\.time_scale: expected a number, got 'fast'"),
        ({"time_scale": True}, r"config\.time_scale: expected a number, got True"),
        ({"time_scale": 0}, r"time_scale: must be from 0\.000001 to 1000, got 0"),
        ({"time_scale": float("nan")}, r"time_scale: must be from .* got nan"),
        ({"keep_bodies": 1}, r"config\.keep_bodies: expected true or false, got 1"),
        ({"attempts_max": 0}, "attempts_max: must be at least 1, got 0"),
        ({"attempts_max": 1.5}, r"config\.attempts_max: expected a whole number, got 1\.5"),
        ({"reply_tokens": 0}, "reply_tokens: must be at least 1, got 0"),
        ({"record_headers": "x-a"}, r"config\.record_headers: expected a list, got 'x-a'"),
        ({"record_headers": ["x-a", 1]}, r"config\.record_headers\[1\]: expected a text, got 1"),
        ({"record_headers": ["Authorization"]}, "record_headers: must be in lower case, got 'Authorization'"),
        (
            {"record_headers": ["authorization"]},
            "record_headers: must not be a credential, got 'authorization'",
        ),
        ({"models": []}, r"config\.models: expected a table, got \[\]"),
        ({"models": {"a": 1}}, r"config\.models\.a: expected a text, got 1"),
        ({"class_limits": {"claude-unheard": {}}}, "class_limits: must be one of .* got 'claude-unheard'"),
        ({"latency": {"decode_tps": 0}}, r"latency\.decode_tps: must be at least 0\.001, got 0"),
        ({"latency": {"decode_tps": "x"}}, r"config\.latency\.decode_tps: expected a number, got 'x'"),
        (
            {"latency": {"chunk_tokens_min": 5}},
            r"latency\.chunk_tokens_max: must not be below the minimum, got 4",
        ),
        ({"limits": {"requests_per_minute": 0}}, r"limits\.requests_per_minute: must be at least 1, got 0"),
        ({"limits": {"burst_s": 0}}, r"limits\.burst_s: must be above 0"),
        ({"scripts": [{}]}, r"script\.text: needs text, echo or tools, got ''"),
        ({"scripts": [{"text": "a", "times": 0}]}, r"script\.times: must be at least 1, got 0"),
        ({"faults": [{"kind": "gremlin"}]}, r"config\.faults\[0\]\.kind: expected one of .* got 'gremlin'"),
        ({"faults": [3]}, r"config\.faults\[0\]\.kind: .* got 3"),
        (
            {"faults": [{"kind": "ramp", "after_chunks": 1}]},
            r"config\.faults\[0\]\.after_chunks: unknown field",
        ),
        ({"faults": [{"kind": "ramp", "times": 0}]}, r"fault\.times: must be at least 1, got 0"),
        ({"faults": [{"kind": "ramp", "match": {"nth": 0}}]}, r"match\.nth: must be at least 1, got 0"),
        (
            {"faults": [{"kind": "ramp", "match": {"probability": 2}}]},
            r"match\.probability: must be from 0 to 1, got 2",
        ),
        (
            {"faults": [{"kind": "ramp", "match": {"day": 2}}]},
            r"config\.faults\[0\]\.match\.day: unknown field",
        ),
        (
            {"faults": [{"kind": "truncate", "after_chunks": -1}]},
            r"fault\.after_chunks: must not be negative, got -1",
        ),
        (
            {"faults": [{"kind": "stall", "keep_alive": "song"}]},
            r"keep_alive: expected one of ping, comment, space, got 'song'",
        ),
        ({"faults": [{"kind": "slow_headers"}]}, r"config\.faults\[0\]\.seconds: is missing"),
        ({"faults": [{"kind": "slow_loris", "size": 0}]}, r"fault\.size: must be at least 1, got 0"),
        (
            {"faults": [{"kind": "slow_headers", "seconds": -1}]},
            r"fault\.seconds: must be from 0 to 86400, got -1",
        ),
        (
            {"faults": [{"kind": "slow_headers", "seconds": 1, "status": 700}]},
            r"fault\.status: must be 200 or from 400 to 599, got 700",
        ),
        (
            {"faults": [{"kind": "slow_headers", "seconds": 1, "status": 302}]},
            r"fault\.status: must be 200 or from 400 to 599, got 302",
        ),
        (
            {"faults": [{"kind": "slow_headers", "seconds": 1, "retry_after": "é"}]},
            r"fault\.retry_after: must be printable ASCII",
        ),
        (
            {"faults": [{"kind": "rate_limited", "retry_after": "1\n2"}]},
            r"fault\.retry_after: must be printable ASCII .*, got '1\\n2'",
        ),
        (
            {"faults": [{"kind": "status", "retry_after": " 1"}]},
            r"fault\.retry_after: must be printable ASCII",
        ),
        (
            {"faults": [{"kind": "status", "retry_after_date_s": 1e15}]},
            r"fault\.retry_after_date_s: must be from -1000000000 to 1000000000",
        ),
        ({"organization_id": "é"}, "organization_id: must be printable ASCII .*, got 'é'"),
    ],
)
def test_mistakes_name_the_field_and_the_value(values: Any, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        ClaudeConfig.from_mapping(values)


@pytest.mark.parametrize("keys", ["sk-secret", 7, {"sk-secret": 1}, ["sk-other", {"key": "sk-secret"}]])
def test_a_mistake_with_the_keys_does_not_show_them(keys: Any) -> None:
    with pytest.raises(ConfigError, match=r"^config\.api_keys: expected a list of texts") as raised:
        ClaudeConfig.from_mapping({"api_keys": keys})
    assert "sk-" not in "".join(traceback.format_exception(raised.value))
    assert "sk-" not in repr(ClaudeConfig(api_keys=("sk-secret",)))


async def test_serve_runs_until_it_is_cancelled() -> None:
    ready: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.ensure_future(serve(ClaudeConfig(time_scale=0.001), seed=3, on_ready=ready.put_nowait))
    url = await ready.get()
    async with AsyncAnthropic(api_key="k", base_url=url, max_retries=0) as client:
        assert (await create(client)).role == "assistant"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
