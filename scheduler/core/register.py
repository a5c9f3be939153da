"""The state of an engine, and the tenants in it: made at first sight, forgotten when they matter no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from scheduler.core.account import Account, shape_of
from scheduler.core.agenda import Calendar
from scheduler.core.entry import Entry
from scheduler.core.gate import Gate
from scheduler.core.line import Line
from scheduler.core.policy import Overload
from scheduler.core.quota import Quota
from scheduler.core.signals import News, Upstream
from scheduler.core.tenant import Tenant

LINGER = 1 << 30
"""Nanoseconds for which an idle tenant is kept at least, so that a busy one is not made anew all the time."""

FADE_STEP = 1 << 20
"""Nanoseconds: idle tenants are looked over in batches 1 ms apart; larger ones would hold up others."""

RETURN, LATE, HEAD, GATE, BEHIND, EXPIRE, FADE, LADDER, ARRIVE = range(9)
"""Kinds of events, in the order in which they are processed when they fall on the same nanosecond: whoever
becomes eligible, or has the turn of a line that is late from then on, does so before a gate chooses; a head
that leaves its permits to an older one of its tenant at another gate comes after that choice; a job may still
start at the very end of its deadline; and whoever arrives finds all that done."""

Event = tuple[int, int, int, Any]
"""(time, kind, key, owner)."""


class Register:
    """What an engine remembers.

    `events` is everything that will happen by itself, `touched` the gates that have to look who may pass,
    `moved` the jobs whose state changed and whose callers must be told, in that order, `news` what happened
    at gates and nobody has read yet. `root` holds the scheduler's own slots. `sessions` has, for each session
    with a job in line or running, the jobs behind it, `runs` the lines in which continuations wait.
    `deferred` counts the jobs that are served elsewhere. `overload` says what happens in a line that is late.
    """

    def __init__(
        self,
        now: int,
        quota_of: Callable[[str], Quota],
        gates: Mapping[str, Quota | Upstream],
        max_running: int,
    ) -> None:
        self.quota_of = quota_of
        self.tenants: dict[str, Tenant] = {}
        self.most_tenants = 0
        self.gates = {name: Gate(name, given, now) for name, given in gates.items()}
        self.root = Account(shape_of(Quota(concurrency=max_running)), now)
        self.sessions: dict[tuple[str, str], list[Entry]] = {}
        self.runs: dict[Line, None] = {}
        self.events: Calendar[Event] = Calendar()
        self.touched: dict[Gate, None] = {}
        self.moved: list[Entry] = []
        self.news: list[News] = []
        self.waiting = 0
        self.sequence = 0
        self.stalls = 0
        self.granted = 0
        self.deferred = 0
        self.overload: Overload | None = None

    def everyone(self) -> list[Entry]:
        """All waiting jobs: in their lines, behind a job of their session, and in backoff."""
        inside = [e for tenant in self.tenants.values() for line in tenant.lines.values() for e in line]
        behind = [e for parked in self.sessions.values() for e in parked]
        backoff = [item[-1] for item in self.events if item[1] == RETURN]
        return inside + behind + backoff

    def _tenant(self, name: str, now: int) -> Tenant:
        """The tenant's state, made at first sight."""
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.tenants[name] = Tenant(name, shape_of(self.quota_of(name)), now)
            self.most_tenants = max(self.most_tenants, len(self.tenants))
        return tenant

    def _fade(self, tenant: Tenant, now: int) -> None:
        """Arrange for an idle tenant to be looked over once its buckets are full and its echo has passed."""
        if tenant.placed is None:
            idle = max(now, tenant.idle_at())
            self.sequence += 1
            self.events.put((((idle + LINGER) // FADE_STEP + 1) * FADE_STEP, FADE, self.sequence, tenant))

    def _forget(self, tenant: Tenant, time: int) -> None:
        """Forget a tenant whose absence would change no decision; look again later if one still would."""
        if tenant.lines or tenant.running or tenant.override or self.tenants.get(tenant.name) is not tenant:
            return
        if tenant.idle_at() <= time and not self._owes(tenant):
            del self.tenants[tenant.name]
            for gate in self.gates.values():
                gate.fair.forget(tenant.name)
            if 4 * len(self.tenants) < self.most_tenants:
                # A dict does not give memory back when entries go; copying it does.
                self.tenants = dict(self.tenants)
                self.most_tenants = len(self.tenants)
        else:
            self._fade(tenant, time)

    def _owes(self, tenant: Tenant) -> bool:
        return any(gate.fair.has_debt(tenant.name) for gate in self.gates.values())
