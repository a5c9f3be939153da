"""The control plane: another process reads and changes the simulation over HTTP."""

import json
from typing import Any

import pytest

from scheduler.testing import Fault, Limits, Match, SimulatedClaude, damage, effects
from scheduler.testing.claude.config import ClaudeConfig
from tests.testing.claude_client import KEY, asked, call, quick


async def control(claude: SimulatedClaude, method: str, path: str, body: object = None) -> tuple[int, Any]:
    response = await call(claude, f"/_sim/{path}", body, method=method, headers={})
    return response.status, response.json()


async def status(claude: SimulatedClaude) -> int:
    return (await call(claude, "/v1/messages", asked())).status


async def test_faults_can_be_read_added_and_taken_away() -> None:
    async with SimulatedClaude(quick()) as claude:
        added = [
            {"kind": "overloaded", "retry_after": 3, "times": 1},
            {"kind": "status", "status": 409, "match": {"nth": 2}},
        ]
        code, faults = await control(claude, "POST", "faults", added)
        assert code == 200
        assert [(fault["kind"], fault["times"]) for fault in faults] == [("overloaded", 1), ("status", None)]
        assert [await status(claude) for _ in range(3)] == [529, 409, 200]
        await control(claude, "POST", "faults", {"kind": "ramp"})
        assert await status(claude) == 429
        assert await control(claude, "DELETE", "faults") == (200, [])
        assert await status(claude) == 200
        assert await control(claude, "GET", "faults") == (200, [])


async def test_attempts_can_be_read_page_by_page() -> None:
    async with SimulatedClaude(quick()) as claude:
        for _ in range(4):
            await status(claude)
        _, everything = await control(claude, "GET", "requests")
        _, page = await control(claude, "GET", "requests?after=1&limit=2")
    assert [record["number"] for record in everything] == [1, 2, 3, 4]
    assert [record["number"] for record in page] == [2, 3]
    assert everything[0]["decision"] == "admitted"
    assert everything[0]["end_ns"] > everything[0]["arrival_ns"]


async def test_sums_can_be_read_and_reset() -> None:
    async with SimulatedClaude(quick(limits=Limits(requests_per_minute=1))) as claude:
        assert [await status(claude), await status(claude)] == [200, 429]
        _, stats = await control(claude, "GET", "stats")
        assert (stats["requests"], stats["admitted"], stats["rate_limited"]) == (2, 1, 1)
        assert stats["refused"] == {"requests": 1}
        assert stats["statuses"] == {"200": 1, "429": 1}
        assert await control(claude, "POST", "reset") == (200, {})
        _, stats = await control(claude, "GET", "stats")
        assert stats["requests"] == 0
        assert await status(claude) == 200


async def test_the_configuration_can_be_replaced() -> None:
    async with SimulatedClaude(quick()) as claude:
        code, config = await control(
            claude, "PUT", "config", {"limits": {"requests_per_minute": 7}, "time_scale": 0.01}
        )
        assert (code, config["limits"]["requests_per_minute"]) == (200, 7)
        assert claude.config.limits == Limits(requests_per_minute=7)
        response = await call(claude, "/v1/messages", asked())
        assert response.headers["anthropic-ratelimit-requests-limit"] == "7"


async def test_bounds_change_with_the_configuration_while_it_listens() -> None:
    async with SimulatedClaude(quick()) as claude:
        assert await status(claude) == 200
        claude.configure(quick(body_bytes_max=50))
        assert await status(claude) == 413


async def test_what_is_read_can_be_written_back_and_keys_are_hidden() -> None:
    faults = (
        Fault(effects.RateLimited(retry_after="soon"), Match(tenant="a", every=2), times=3),
        Fault(damage.Stall(2, seconds=3, keep_alive="ping")),
    )
    async with SimulatedClaude(quick(*faults, api_keys=("sk-secret",))) as claude:
        _, table = await control(claude, "GET", "config")
        assert "sk-secret" not in json.dumps(table)
        del table["api_keys"]
        await control(claude, "PUT", "config", table)
        assert claude.config == quick(*faults)


async def test_hidden_keys_that_come_back_are_those_in_force() -> None:
    async with SimulatedClaude(quick(api_keys=("sk-other", KEY))) as claude:
        _, table = await control(claude, "GET", "config")
        table["api_keys"] = [table["api_keys"][1], "sk-new"]
        _, written = await control(claude, "PUT", "config", table)
        assert claude.config.api_keys == (KEY, "sk-new")
        assert await status(claude) == 200
    assert written["api_keys"] == ["hidden (0)", "hidden (1)"]


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "named"),
    [
        ("GET", "nothing", None, 404, "Not found"),
        ("POST", "stats", None, 404, "Not found"),
        ("POST", "faults", b"{", 400, "not valid JSON"),
        ("POST", "faults", {"kind": "no such"}, 400, "faults[0].kind"),
        (
            "POST",
            "faults",
            {"kind": "status", "status": 200},
            400,
            "fault.status: must be from 400 to 599, got 200",
        ),
        ("PUT", "config", {"speed": 1}, 400, "config.speed"),
        ("GET", "requests?after=x", None, 400, "after"),
        ("GET", "requests?limit=" + "9" * 99, None, 400, "limit"),
    ],
)
async def test_mistakes_are_named(method: str, path: str, body: object, code: int, named: str) -> None:
    async with SimulatedClaude(quick()) as claude:
        answered, error = await control(claude, method, path, body)
        assert claude.config == quick()
    assert answered == code
    assert named in error["error"]["message"]


async def test_the_control_plane_leaves_no_trace() -> None:
    async with SimulatedClaude(ClaudeConfig()) as claude:
        await control(claude, "GET", "stats")
        await control(claude, "GET", "config")
        assert claude.requests == []
        assert claude.stats().requests == 0
