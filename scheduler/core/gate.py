"""A gate: the limit that tenants share in front of an upstream. Buckets, slots, a pause, and a fair order."""

from __future__ import annotations

from typing import Any

from scheduler.core.account import Account, Shape
from scheduler.core.agenda import Agenda
from scheduler.core.fairness import FairOrder
from scheduler.core.line import Line
from scheduler.core.policy import Cause

Turn = tuple[int, int, Line]
"""(start tag, key of the head, line): the order in which eligible heads pass."""

NOBODY = 1 << 200
"""Above every key."""


class Gate(Account):
    """The state of one gate.

    `eligible` holds the lines whose head has its tenant's permits and needs a slot here; `holding` those
    whose head is a continuation and brings its slot along. `backlog` sums the waiting jobs' amounts in the
    gate's units; `lines` counts the tenants that have a line here, `crowd` sums their weights.
    """

    __slots__ = (
        "backlog",
        "crowd",
        "eligible",
        "fair",
        "holding",
        "late",
        "lines",
        "name",
        "paused_until",
        "placed",
    )

    def __init__(self, name: str, shape: Shape, now: int) -> None:
        super().__init__(shape, now)
        self.name = name
        self.eligible: Agenda[Turn] = Agenda()
        self.holding: Agenda[Turn] = Agenda()
        self.fair = FairOrder()
        self.paused_until = now
        self.placed: tuple[Any, ...] | None = None
        self.backlog = [0] * len(shape.scales)
        self.lines = 0
        self.crowd = 0.0
        self.late: dict[Cause, int] = {}

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
