"""The main job at size: 10,000 prompts of 50 tenants, half of them of one, judged by the upstream's log."""

from __future__ import annotations

import json
import random
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from scheduler import Job
from scheduler.cli.options import Options
from scheduler.cli.prompts import Errand, answer_file
from scheduler.cli.screen import quantile
from scheduler.cli.wiring import Upstream
from scheduler.runtime.clock import MonotonicClock
from tests.cli.conftest import COMMAND, environment, read_lines, write_lines

PROMPTS, TENANTS = 10_000, 50
RATE, BURST = 90.0, 20
NS = 1_000_000_000
CATCH_UP_S = 0.05


def prompts(path: Path) -> dict[str, list[int]]:
    """A shuffled file; returns each tenant's line numbers in order."""
    owners = ["big"] * (PROMPTS // 2) + [f"t{i % (TENANTS - 1)}" for i in range(PROMPTS // 2)]
    random.Random(7).shuffle(owners)
    write_lines(path, [{"tenant": owner, "prompt": f"Say hi {i}"} for i, owner in enumerate(owners)])
    lines: dict[str, list[int]] = defaultdict(list)
    for number, owner in enumerate(owners, 1):
        lines[owner].append(number)
    return lines


def excess(arrivals_ns: list[int]) -> float:
    """The most permits by which any interval holds more arrivals than the rate refills."""
    worst, least = 0.0, float("inf")
    for count, at in enumerate(sorted(arrivals_ns)):
        level = count - RATE * at / NS
        least = min(least, level)
        worst = max(worst, level - least + 1)
    return worst


@pytest.fixture
def base_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A simulated Claude in a process of its own, which the environment names as the API."""
    config = tmp_path / "claude.json"
    config.write_text(json.dumps({"latency": {"ttft_base_s": 0.02, "decode_tps": None}, "reply_tokens": 3}))
    command = [*COMMAND, "upstream", "--port", "0", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            for name, value in (
                ("ANTHROPIC_BASE_URL", url),
                ("ANTHROPIC_API_KEY", "any"),
                ("NO_PROXY", "127.0.0.1,localhost"),
            ):
                monkeypatch.setenv(name, value)
            yield url
        finally:
            server.terminate()


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """When each prompt first started: (job, line in the file, nanoseconds), in the order of the starts."""
    seen: list[tuple[str, int, int]] = []
    begun: set[str] = set()

    def any_earlier(job: str) -> bool:
        """Whether this is a repeat, after a connection that broke on a busy machine."""
        known = job in begun
        begun.add(job)
        return known

    clock, note = MonotonicClock(), Errand._note

    def noted(errand: Errand, job: Job) -> None:
        if not any_earlier(job.id):
            seen.append((job.id, errand._turns[job.id].line.number, clock.now()))
        note(errand, job)

    monkeypatch.setattr(Errand, "_note", noted)
    return seen


@pytest.mark.timeout(400)
async def test_ten_thousand_prompts_in_order_at_the_rate_and_none_lost(
    tmp_path: Path, base_url: str, starts: list[tuple[str, int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Bounds are those of the laws; the only measured time in them is the way from grant to arrival."""
    file, out = tmp_path / "p.jsonl", tmp_path / "r.jsonl"
    lines = prompts(file)
    options = Options(file, out, RATE, BURST, False, 256, None)
    status = await answer_file(Upstream(simulated=False, model="claude-haiku-4-5"), options)
    summary = capsys.readouterr()
    assert status == 0, summary
    assert "10000 answered" in summary.out
    assert "Promised against measured start: p50" in summary.out
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
        log: list[dict[str, Any]] = (await client.get(f"{base_url}/_sim/requests?limit={2 * PROMPTS}")).json()

    replies = read_lines(out)
    assert sorted(reply["line"] for reply in replies) == list(range(1, PROMPTS + 1))
    assert len(log) == PROMPTS, "every prompt was sent upstream once"

    owner = {number: tenant for tenant, numbers in lines.items() for number in numbers}
    started: dict[str, list[int]] = defaultdict(list)
    for _, number, _ in starts:
        started[owner[number]].append(number)
    assert started == lines, "first starts in the order of the file, tenant by tenant"

    began = {job: at for job, _, at in starts}
    lag = quantile([(row["arrival_ns"] - began[row["job"]]) / NS for row in log], 0.99)
    arrivals: dict[str, list[int]] = defaultdict(list)
    for row in log:
        arrivals[row["tenant"]].append(row["arrival_ns"])
    assert arrivals.keys() == lines.keys()
    for tenant, times in arrivals.items():
        allowed = BURST + RATE * (CATCH_UP_S + lag)
        assert excess(times) <= allowed, f"{tenant}: above its rate (p99 from grant to arrival {lag:.3f} s)"
