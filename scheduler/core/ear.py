"""Gates that follow their upstreams while nobody's line is here: what a store decides when it hears."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.core.account import UNLIMITED
from scheduler.core.engine import Engine
from scheduler.core.gate import Gate
from scheduler.core.quota import Quota
from scheduler.core.shared import SharedGate
from scheduler.core.signals import Signal
from scheduler.core.stored import StoredJob


class Ear(Engine):
    """The engine with gates only. Whom their changes concern is looked at when lines are there again."""

    def __init__(self, gates: Mapping[str, SharedGate], now: int) -> None:
        super().__init__(now, lambda _: Quota(), {}, UNLIMITED)
        self._shared = gates
        self.gates.update(gates)

    def note(self, now: int, name: str, job: StoredJob, signal: Signal) -> None:
        """Take note of an upstream's answer to a job's call."""
        gate = self._shared[name]
        before, job.shared, probes = gate.keep(), gate, gate.probe_id == job.sequence
        gate.probe = job if probes else None
        self.hear(now, job, signal)
        if probes and gate.probe is None:
            gate.probe_id = None
        gate.probe = None
        if gate.keep() != before:
            gate.move(now)

    def open(self, now: int, name: str) -> None:
        """An operator knows that a gate may let calls pass again."""
        gate = self._shared[name]
        self.resume(now, name)
        gate.probe_id = None
        gate.move(now)

    def _serve(self, gate: Gate, time: int, now: int) -> None:
        """Nobody is here."""
