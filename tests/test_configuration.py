"""A file that says who may use what, how long they wait, and what they share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scheduler import Job, Policy, Quota, Rate, Rung, Scheduler, Upstream
from scheduler.configuration import read
from scheduler.testing import VirtualClock, run_virtual
from tests.project.repository import ROOT

TEXT = """
version = 7

[tiers.free]
requests = { permits = 2, burst = 5 }
concurrency = 3
max_wait = 60
ladder = [{ after = 10, model = "haiku" }, { after = 30, max_tokens = 256 }]

[tiers.gold]
weight = 3

[default]
tier = "free"

[tenants.acme]
tier = "free"
weight = 5
max_wait = 90
max_queue = 7

[tenants.rich]
tier = "gold"

[tenants.plain]
requests = { permits = 1 }

[gates.opus]
requests = { permits = 1000, per = 60, burst = 50 }
concurrency = 64
ceiling = { requests = { permits = 5000, per = 60 } }
spend_probe = 600

[gates.haiku]
"""

LADDER = (Rung(10, model="haiku"), Rung(30, max_tokens=256))


def test_tenants_take_what_their_tier_says_unless_they_say_it() -> None:
    found = read(TEXT)
    assert found.quota("acme") == Quota(Rate(2, burst=5), concurrency=3, weight=5)
    assert found.policy("acme") == Policy(max_wait=90, max_queue=7, ladder=LADDER)
    assert (found.quota("rich"), found.policy("rich")) == (
        Quota(weight=3),
        Policy(max_wait=60, ladder=LADDER),
    )
    assert found.quota("plain") == Quota(Rate(1))
    assert found.quota("anybody") == Quota(Rate(2, burst=5), concurrency=3)
    assert found.policy("anybody") == Policy(max_wait=60, ladder=LADDER)
    assert read("version = 1").quota("anybody") == Quota()
    assert read("version = 1").policy("anybody") == Policy()


def test_a_tenant_that_says_nothing_of_a_quota_has_that_of_the_others() -> None:
    """Neither itself nor by its tier: to be patient is not to be without limits."""
    text = """
    version = 1
    [default]
    requests = { permits = 2, burst = 5 }
    [tiers.patient]
    max_wait = 600
    [tenants.only]
    max_wait = 5
    [tenants.calm]
    tier = "patient"
    [tenants.empty]
    [tenants.free]
    weight = 1
    """
    found = read(text)
    for name in ("only", "calm", "empty", "anybody"):
        assert found.quota(name) == Quota(Rate(2, burst=5))
    assert found.quota("free") == Quota()
    assert [found.policy(name).max_wait for name in ("only", "calm", "empty")] == [5, 600, Policy().max_wait]
    assert found.tenants.keys() == {"free"}
    assert read("version = 1\n[default]\nmax_wait = 5").default is None


def test_gates_are_what_a_scheduler_takes() -> None:
    found = read(TEXT)
    assert found.gates == {
        "opus": Upstream(
            Quota(Rate(1000, per=60, burst=50), concurrency=64),
            ceiling=Quota(Rate(5000, per=60)),
            spend_probe=600,
        ),
        "haiku": Upstream(Quota()),
    }

    async def main() -> list[str | None]:
        async def handler(job: Job) -> str | None:
            return job.model

        settings = {"quotas": found.quota, "policy": found.policy, "gates": found.gates}
        async with Scheduler(handler, clock=VirtualClock(), **settings) as scheduler:  # type: ignore[arg-type]
            return [await scheduler.submit("acme", "hello", gate="opus") for _ in range(6)]

    assert run_virtual(main()) == [None] * 6


@pytest.mark.repository
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_the_examples_are_read_and_their_ladders_lead_somewhere(path: Path) -> None:
    found = read(path.read_text(encoding="utf-8"))
    assert len(found.gates) == 4
    for rung in found.policy("anybody").ladder:
        assert rung.model is None or rung.model in found.gates
    for gate in found.gates.values():
        assert gate.quota.output_tokens is not None
        assert gate.quota.output_tokens.burst == gate.quota.output_tokens.permits / 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[default]\ntier = 'x'", "default.tier: must be one of [], got 'x'"),
        ("[tiers.a]\nrequest = 1", "tiers.a.request: is not known, only tier, "),
        ("[tiers.a]\ntier = 'a'", "tiers.a.tier: must be one of [], got 'a'"),
        ("[tenants.a]\nladder = 3", "tenants.a.ladder: must be an array of tables, got 3"),
        ("[tenants.a]\nladder = [{ model = 'x' }]", "tenants.a.ladder[0].after: is missing, got {"),
        ("[tenants.a]\nladder = [{ after = 1, modell = 'x' }]", "tenants.a.ladder[0].modell: is not known, "),
        ("[tenants.a]\nladder = [{ after = 1 }]", "tenants.a.ladder[0].rung: must change something"),
        ("[default]\nmax_wait = -1", "default.max_wait: must not be negative, got -1"),
        ("[gates.a]\nspend_probe = 0", "gates.a.spend_probe: must be above 0, got 0"),
        ("[gates.a]\nceiling = 3", "gates.a.ceiling: must be a table, got 3"),
        ("[gates.a]\nmax_wait = 3", "gates.a.max_wait: is not known, only requests, "),
        ("gates = 3", "gates: must be a table, got 3"),
        ("gates = " + "[" * 50_000, "is nested too deeply"),
        ('[tenants."a\\u0000"]\nmax_wait = 3', "tenants: a name: must be valid Unicode without NUL"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        read(f"version = 1\n{text}\n")
