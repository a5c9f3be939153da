"""A gate: the limit that tenants share in front of an upstream. Buckets, slots, a pause, and a fair order."""

from __future__ import annotations

from typing import Any

from scheduler.core.account import Account, shape_of
from scheduler.core.agenda import Agenda
from scheduler.core.entry import Entry
from scheduler.core.fairness import FairOrder
from scheduler.core.line import Line
from scheduler.core.policy import Cause
from scheduler.core.quota import Quota
from scheduler.core.signals import Upstream

Turn = tuple[int, int, Line]
"""(start tag, key of the head, line): the order in which eligible heads pass."""

NOBODY = 1 << 200
"""Above every key."""

SPREAD = 1_000_000
"""Nanoseconds between those that a closed or paused gate refuses, so that they do not come back together."""

SPREADS = 60_000 * SPREAD
"""Nanoseconds within which all of them are told their times."""

REFUSED = 64
"""Times of which is remembered what was told."""

COUNTED = 8
"""Heads that are counted one by one."""

RAMP_FULL = 32
"""Parts of the limits that are used when growth is not slowed down."""


class Gate(Account):
    """The state of one gate.

    `eligible` holds the lines whose head has its tenant's permits and needs a slot here; `holding` those
    whose head is a continuation and brings its slot along. `backlog` sums the waiting jobs' amounts in the
    gate's units; `lines` counts the tenants that have a line here, `crowd` sums their weights.

    The rest follows the upstream. `cut`: slots that are withheld while it is short, since `cut_at`, and from
    so many that were in use then, `cut_from`;
    `failures`: failed calls since the last one that it accepted. `told`: limits that it named, permits per
    minute. `ramp`: the part of the limits that is used while growth is slowed down, in `RAMP_FULL` parts,
    since `ramped_at`. `refused`: by the time for which somebody had to wait who was refused here, what the
    last of them was told.
    `closed_until`: when a spending limit may be probed, None while the gate is open; `probe`: who does.
    """

    __slots__ = (
        "backlog",
        "closed_until",
        "crowd",
        "cut",
        "cut_at",
        "cut_from",
        "eligible",
        "failures",
        "fair",
        "holding",
        "late",
        "lines",
        "name",
        "paused_until",
        "placed",
        "probe",
        "ramp",
        "ramped_at",
        "refused",
        "told",
        "upstream",
    )

    def __init__(self, name: str, given: Quota | Upstream, now: int) -> None:
        self.upstream = Upstream.of(name, given)
        super().__init__(shape_of(self.upstream.quota), now)
        self.name = name
        self.eligible: Agenda[Turn] = Agenda()
        self.holding: Agenda[Turn] = Agenda()
        self.fair = FairOrder()
        self.paused_until = now
        self.placed: tuple[Any, ...] | None = None
        self.backlog = [0] * len(self.shape.scales)
        self.lines = 0
        self.crowd = 0.0
        self.late: dict[Cause, int] = {}
        self.cut = self.failures = 0
        self.refused: dict[int, int] = {}
        self.cut_at = now
        self.cut_from = 0
        self.told: dict[str, int] = {}
        self.ramp, self.ramped_at = RAMP_FULL, now
        self.closed_until: int | None = None
        self.probe: Entry | None = None

    @property
    def slots(self) -> int:
        """Calls that may run at once now."""
        return self.shape.concurrency - self.cut

    @property
    def opens(self) -> int:
        """When the pause ends, or the next probe may go."""
        return self.paused_until if self.closed_until is None else self.closed_until

    def shut_to(self, entry: Entry) -> bool:
        """Whether a call must not begin although it was granted: the gate was closed since."""
        return self.closed_until is not None and self.probe is not entry and not entry.deferred

    def wait_of_refused(self, until: int, now: int) -> int:
        """In how long to come back, after `until`: another time for each that is refused here."""
        until = max(until, now + 1)
        last = self.refused.pop(until, None)
        told = until if last is None else last + SPREAD if last < until + SPREADS else until + 1
        self.refused[until] = told
        if len(self.refused) > REFUSED:
            del self.refused[next(iter(self.refused))]
        return told - now

    def turn(self, slot: bool) -> Turn | None:
        """Whose turn it is, given whether a slot is free."""
        run = self.holding.first()
        head = self.eligible.first() if slot else None
        if head is None or (run is not None and run < head):
            return run
        return head

    def oldest(self) -> int:
        """The key of the head whose turn it is: of several gates, the one with the oldest goes first."""
        turn = self.turn(True)
        return NOBODY if turn is None else turn[1]

    def serve(self, tenant: str, start: int, step: int) -> int:
        """Account for a grant in fair order; the busy period in which it was made is returned.

        The virtual time does not pass a head that waits for a slot while a continuation, which brings its
        own, goes before it.
        """
        head = self.eligible.first()
        reached = start if head is None or head[0] > start else head[0]
        return self.fair.serve(tenant, start, step, reached)

    def before(self, start: int, key: int) -> int:
        """How many heads stand here whose turn comes before that of such a tag and key.

        Of more than `COUNTED` all are taken to: what is before a place is then a part of the whole anyway.
        """
        items, found, look = self.eligible.items, 0, [0]
        size = len(items)
        while look and found < COUNTED:
            index = look.pop()
            if index < size:
                item = items[index]
                if item[0] < start or (item[0] == start and item[1] < key):
                    found += item[2].placed is item
                    look += (2 * index + 1, 2 * index + 2)
        return self.standing if look else found

    @property
    def standing(self) -> int:
        """How many heads stand here for a slot."""
        return len(self.eligible.items) - self.eligible.stale

    @property
    def backlogged(self) -> bool:
        """Whether anybody eligible waits here."""
        return self.eligible.first() is not None or self.holding.first() is not None

    def delay(self, cause: Cause, until: int) -> None:
        """Note that a cause may have delayed whoever has arrived by `until`."""
        self.late[cause] = max(until, self.late.get(cause, until))
