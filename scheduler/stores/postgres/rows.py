"""Rows to values of the core, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from asyncpg import Record

from scheduler.core.account import Shape, shape_of
from scheduler.core.policy import Policy, Rung
from scheduler.core.quota import DIMENSIONS, NS, ONE, Cost, Number, Quota, Rate, Usage, exact
from scheduler.core.shared import SharedGate
from scheduler.core.signals import Upstream
from scheduler.core.stored import Kept, LineState, StoredJob, TenantState


@lru_cache(maxsize=4096)
def write_quota(quota: Quota) -> str:
    """A quota as JSON: equal limits are spelled the same, and exactly."""
    spelled: dict[str, Any] = {}
    for name in DIMENSIONS:
        rate = getattr(quota, name)
        if rate is not None:
            spelled[name] = [str(exact(name, rate.permits)), str(exact(name, rate.per)), rate.burst]
    if quota.concurrency is not None:
        spelled["concurrency"] = quota.concurrency
    weight = exact("weight", quota.weight)
    if weight != 1:
        spelled["weight"] = str(weight)
    return json.dumps(spelled, sort_keys=True)


@lru_cache(maxsize=4096)
def read_quota(text: str) -> Quota:
    """The quota that `write_quota` wrote."""
    spelled = json.loads(text)
    rates = {
        name: Rate(_number(spelled[name][0]), per=_number(spelled[name][1]), burst=spelled[name][2])
        for name in DIMENSIONS
        if name in spelled
    }
    weight = _number(spelled.get("weight", "1"))
    return Quota(
        rates.pop("requests", None),
        **rates,
        concurrency=spelled.get("concurrency"),
        weight=weight,  # type: ignore[arg-type]
    )


def _number(text: str) -> Number:
    """A number as somebody gives it, if it can be given so: fractions take long to compare with others."""
    number = Fraction(text)
    plain = number.numerator if number.denominator == 1 else float(number)
    return plain if exact("", plain) == number else number


@lru_cache(maxsize=4096)
def _limits(text: str) -> tuple[Quota, Shape]:
    """A quota with its shape: to find that by the quota takes longer than all that is asked of it here."""
    quota = read_quota(text)
    return quota, shape_of(quota)


def write_numbers(numbers: Sequence[int]) -> str:
    """Whole numbers of any size, as PostgreSQL spells an array."""
    return "{" + ",".join(map(str, numbers)) + "}"


def read_numbers(text: str) -> list[int]:
    """The numbers of an array that PostgreSQL spelled."""
    return [int(number) for number in text[1:-1].split(",")] if len(text) > 2 else []


def write_upstream(upstream: Upstream) -> str:
    """What is given for a gate, as JSON: equal ones are spelled the same."""
    ceiling = None if upstream.ceiling is None else write_quota(upstream.ceiling)
    probe = str(exact("spend_probe", upstream.spend_probe))
    return json.dumps([write_quota(upstream.quota), ceiling, probe])


@lru_cache(maxsize=256)
def read_upstream(text: str) -> Upstream:
    """What `write_upstream` wrote."""
    quota, ceiling, probe = json.loads(text)
    return Upstream(
        read_quota(quota),
        ceiling=None if ceiling is None else read_quota(ceiling),
        spend_probe=Fraction(probe),  # type: ignore[arg-type]
    )


def read_gates(text: str | None) -> list[SharedGate]:
    """The rows of all gates, as JSON."""
    gates = []
    for row in json.loads(text or "[]"):
        gate = SharedGate.kept(
            row["name"], read_upstream(row["given"]), json.loads(row["state"]), row["running"]
        )
        gate.due, gate.calls = row["due"], row["calls"]
        gates.append(gate)
    return gates


def write_gate(gate: SharedGate) -> tuple[str, int, int | None, int | None, str]:
    """A gate's row: name, running, due, calls, state."""
    return gate.name, gate.running, gate.due, gate.calls, json.dumps(gate.keep())


def read_lines(lines: str | list[dict[str, Any]] | None) -> dict[str, LineState]:
    """The rows of a tenant's lines, as JSON."""
    found = json.loads(lines) if isinstance(lines, str) else lines or []
    return {row["gate"]: LineState(**row) for row in found}


def read_tenant(row: Record | Mapping[str, Any]) -> TenantState:
    """A tenant's row."""
    limits = _limits(row["quota"])
    return TenantState(
        lines=read_lines(row.get("lines")),
        name=row["tenant"],
        quota=limits[0],
        zeros=read_numbers(row["zeros"]),
        as_of=row["as_of"],
        running=row["running"],
        waiting=row["waiting"],
        work=read_numbers(row["work"]),
        due=row["due"],
        echoes=read_echoes(row["echo"]),
        limits=limits,
    )


def read_echoes(text: str | None) -> dict[str, Kept]:
    """The phantoms of those refused, by gate; before there were gates it was one list."""
    found = json.loads(text or "{}")
    return {name: tuple(kept) for name, kept in (found if isinstance(found, dict) else {"": found}).items()}


def write_echoes(echoes: Mapping[str, Kept]) -> str | None:
    """The phantoms of those refused, or null."""
    return json.dumps(echoes) if echoes else None


@lru_cache(maxsize=4096)
def cost_of(requests: int, input_tokens: int, output_tokens: int) -> Cost:
    """The cost of a stored job; one request is the very `ONE` that the engine takes short ways with."""
    cost = Cost(requests, input_tokens, output_tokens)
    return ONE if cost == ONE else cost


def reserved_of(row: Record) -> Usage | None:
    """The cost of a job at its grant, if more output was charged since then."""
    if row["reserved"] is None:
        return None
    requests, input_tokens, _ = row["cost"]
    return Usage(requests, input_tokens, row["reserved"])


@lru_cache(maxsize=1024)
def policy_of(max_wait: int | None) -> Policy:
    """The policy with which a stored job waits: only its `max_wait` still matters."""
    return Policy(max_wait=None if max_wait is None else Fraction(max_wait, NS))  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def write_ladder(policy: Policy, most: int) -> str | None:
    """A policy's rungs, as JSON, with what else they take; None for none. `most` jobs may be deferred."""
    if not policy.ladder:
        return None
    rungs = [[rung.after_ns, rung.model, rung.gate, rung.max_tokens, rung.defer] for rung in policy.ladder]
    return json.dumps({"dark": policy.dark, "queue": policy.max_queue, "deferred": most, "rungs": rungs})


@lru_cache(maxsize=1024)
def read_ladder(text: str, max_wait: int | None) -> tuple[Policy, int]:
    """The policy of a job with a ladder, and how many jobs may be deferred."""
    kept = json.loads(text)
    rungs = [
        Rung(Fraction(after, NS), model=model, gate=gate, max_tokens=most, defer=defer)  # type: ignore[arg-type]
        for after, model, gate, most, defer in kept["rungs"]
    ]
    bound = policy_of(max_wait).max_wait
    return Policy(bound, kept["queue"], ladder=rungs, dark=kept["dark"]), kept["deferred"]


def read_rungs(job: StoredJob, row: Record | Mapping[str, Any]) -> None:
    """What a job's ladder did so far."""
    job.policy, job.most_deferred = read_ladder(row["ladder"], row["max_wait"])
    job.rung, job.predicted, job.plain = row["rung"], row["predicted"], False
    job.model, job.max_tokens, job.slot = row["model"], row["max_tokens"], row["slot"] or 0


def read_job(row: Record | Mapping[str, Any]) -> StoredJob:
    """A waiting job's row."""
    job = StoredJob(
        row["tenant"], row["id"], row["arrival"], policy_of(row["max_wait"]), cost_of(*row["cost"])
    )
    job.promised, job.gate = row["promised"], row.get("gate") or ""
    job.want(head_start=row["head_start"], session=row["session"], deadline=row["deadline"])
    if row.get("ladder") is not None:
        read_rungs(job, row)
    job.slot = row.get("slot") or 0
    if row["paid"]:
        job.paid, job.plain = True, False
    if row["home"] is not None:
        job.home, job.plain = row["home"], False
    if row["holder"] is not None:
        job.follow(row["holder"], row["place"], row["call"])
    return job
