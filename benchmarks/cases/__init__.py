"""All cases, in the order of the tables."""

from __future__ import annotations

from benchmarks.cases import (
    behaviour,
    cancelled,
    growth,
    many_tenants,
    memory,
    metered,
    nobody_waits,
    queued,
    shared_gate,
)
from benchmarks.cases.base import Case, Column
from benchmarks.durable import claim, drain, enqueue, life, metering, paced, pickup

IN_PROCESS = (nobody_waits, queued, many_tenants, memory, cancelled, growth, shared_gate, metered, behaviour)
DURABLE = (enqueue, drain, life, pickup, paced, claim, metering)

CASES: dict[str, Case] = {case.name: case for module in (*IN_PROCESS, *DURABLE) for case in module.CASES}

__all__ = ["CASES", "Case", "Column"]
