"""Tickets of a store: how a job stands, from any process, and what its caller is told at the end."""

from __future__ import annotations

import json
from typing import Any, Protocol, Self

from scheduler.core.policy import Cause, Reason
from scheduler.core.quota import NS
from scheduler.errors import DeadlineExceeded, ErrRateLimited, JobFailed, QuotaExceeded
from scheduler.runtime.job import Ticket
from scheduler.runtime.values import Receipt
from scheduler.stores.protocol import Store
from scheduler.stores.values import RUNNING, STATES, Known, Outcome

REASONS = frozenset(map(str, Reason))


def error_of(outcome: Outcome) -> Exception:
    """What the caller of a job sees that ended without a result."""
    kind = outcome.kind or "failed"
    if kind == "timeout":
        return DeadlineExceeded(outcome.tenant, "timeout", outcome.seconds)
    if kind in REASONS:
        told = json.loads(outcome.result or "0")
        if kind == Reason.NEVER:
            return QuotaExceeded(outcome.tenant, *told)
        return ErrRateLimited(outcome.tenant, Reason(kind), told / NS)
    return JobFailed(outcome.tenant, kind, outcome.attempts)


class Host(Protocol):
    """Whom a ticket asks."""

    store: Store

    async def result_of(self, job: int, tenant: str | None = None) -> Any:
        """Wait for a job's result, or raise what became of it instead."""


class DurableTicket(Ticket):
    """What the caller of `enqueue` holds while its job waits and runs, wherever it does.

    What it says of the job is what was true when the ticket was given; `look` asks again.
    """

    __slots__ = ("_known", "_new", "_owner", "_scheduler")

    def __init__(self, scheduler: Host, known: Known, *, committed: bool = True, new: bool = False) -> None:
        self._scheduler = scheduler
        self._known = known
        self._new = new
        self._owner = known.tenant if committed else None

    @property
    def id(self) -> str:
        """The job's id: with its tenant it finds the job again, from any process."""
        return str(self._known.id)

    @property
    def tenant(self) -> str:
        """Who pays."""
        return self._known.tenant

    @property
    def new(self) -> bool:
        """Whether the call that gave this ticket had the job accepted, and none before under the same key."""
        return self._new

    @property
    def state(self) -> str:
        """``"waiting"``, ``"running"``, ``"done"``, ``"failed"`` or ``"cancelled"``."""
        return STATES[self._known.state]

    @property
    def wait(self) -> float:
        """Seconds promised at submit, by the tenant's own buckets. Fixed."""
        return (self._known.promised - self._known.arrival) / NS

    @property
    def position(self) -> int:
        """Jobs that go before it in its line; 0 for the next one, and once it runs."""
        return self._known.position

    @property
    def expected(self) -> float:
        """Seconds from submit at which it is expected to start, or did."""
        return (self._known.expected - self._known.arrival) / NS

    @property
    def receipt(self) -> Receipt:
        """How the job is, or was, served, as far as is known: `look` asks; a `Reply` has one of its own."""
        known, plan = self._known, self._known.plan
        return Receipt(
            rung=None if plan is None else plan.rung - 1,
            predicted=None if plan is None else plan.predicted / NS,
            model=None if plan is None else plan.model,
            max_tokens=None if plan is None else plan.max_tokens,
            deferred=plan is not None and plan.deferred,
            waited=max(0, (known.slot or known.expected) - known.arrival) / NS,
            gate=known.gate,
            cost=known.cost,
            usage=None,
        )

    @property
    def delayed_by(self) -> frozenset[Cause]:
        """Whether its line was late and went by another order, if `look` has asked: the one cause kept."""
        return frozenset({Cause.OVERLOAD_ORDER} if self._known.overtaken else ())

    async def look(self) -> Self:
        """Ask how the job stands now."""
        known = await self._scheduler.store.look(self._known.id, self._known.tenant)
        if known is not None:
            self._known = known
        return self

    def cancel(self) -> bool:
        """Have the job withdrawn, or its handler cancelled. False if it is known to be over."""
        if self._known.state > RUNNING:
            return False
        self._scheduler.store.cancel_soon(self._known.id, self._known.tenant)
        return True

    async def result(self) -> Any:
        """What the handler returned. Cancelling this call does not withdraw the job."""
        return await self._scheduler.result_of(self._known.id, self._owner)
