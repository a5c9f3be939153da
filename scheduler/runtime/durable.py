"""The scheduler over a store: jobs are committed here, run by workers, and their results come back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from scheduler.core.entry import RUNNING as GRANTED
from scheduler.core.policy import Cause, Policy, Reason
from scheduler.core.quota import NS, ONE, Cost, Quota, instance
from scheduler.errors import DeadlineExceeded, ErrRateLimited, JobFailed, QuotaExceeded, SchedulerClosed
from scheduler.runtime.arguments import check_priority, check_prompt, check_tenant, check_timeout
from scheduler.runtime.grant import Grant, current_turn
from scheduler.runtime.job import Prompt, Ticket
from scheduler.runtime.scheduler import HasTenant, Scheduler
from scheduler.runtime.values import Quote, Statistics
from scheduler.stores.protocol import Store
from scheduler.stores.results import load
from scheduler.stores.values import DONE, RUNNING, STATES, Accepted, Known, Outcome, Request

REASONS = frozenset(map(str, Reason))

MAX_KEY = 512
"""Characters in a key."""


def check_key(key: str) -> str:
    """A key is a string of 1 to 512 characters."""
    if not 0 < len(instance("key", key, str)) <= MAX_KEY:
        raise ValueError(f"key: must have 1 to {MAX_KEY} characters, got {len(key)}")
    return key


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


class DurableTicket(Ticket):
    """What the caller of `enqueue` holds while its job waits and runs, wherever it does.

    What it says of the job is what was true when the ticket was given; `look` asks again.
    """

    __slots__ = ("_known", "_scheduler")

    def __init__(self, scheduler: DurableScheduler, known: Known) -> None:
        self._scheduler = scheduler
        self._known = known

    @property
    def id(self) -> str:
        """The job's id: with its tenant it finds the job again, from any process."""
        return str(self._known.id)

    @property
    def tenant(self) -> str:
        """Who pays."""
        return self._known.tenant

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
    def delayed_by(self) -> frozenset[Cause]:
        """Empty: the store keeps no causes."""
        return frozenset()

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
        return await self._scheduler.result_of(self._known.id)


class DurableScheduler(Scheduler):
    """A `Scheduler` with a store. Its own process runs no job: `Worker` does, there or anywhere else."""

    store: Store

    def __init__(self, *arguments: Any, store: Store, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if settings.get("gates") is not None:
            raise ValueError("gates: a store has no shared gates yet; leave them out")
        self.store = store
        self._pending = 0

    # --- life ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        self.closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.aclose(drain=kind is None)
        finally:
            await self.store.__aexit__(kind, error, trace)

    async def aclose(self, *, drain: bool = True) -> None:
        """Take no more jobs here. What was accepted stays in the store, and workers run it.

        `drain` True: return when all calls of `submit` that wait here have their results.
        """
        self.closed = True
        while drain and self._pending:
            self._quiet.clear()
            await self._quiet.wait()

    # --- submitting ---------------------------------------------------------------------------------

    def submit(self, tenant: str, prompt: Prompt, **wishes: Any) -> Coroutine[Any, Any, Any]:
        """See `Scheduler.submit`. The job is committed before it waits, and outlives this process.

        Cancelling the call withdraws it while it waits, and has its handler cancelled while it runs. `key`:
        at most one job of the tenant is ever accepted under it; a second call gets the first one's result.
        Raises `JobFailed` where a handler's exception would reach the caller in process.
        """
        return self._submit(self._request(tenant, prompt, **wishes), wishes.get("timeout"))

    async def _submit(self, request: Request, timeout: float | None) -> Any:
        if self.closed:
            raise SchedulerClosed("the scheduler is closed")
        self._pending += 1
        accepted: Accepted | None = None
        try:
            accepted = await self.store.submit(request)
            async with asyncio.timeout(None if timeout is None else self.store.until(accepted.deadline)):
                return await self.result_of(accepted.id)
        except TimeoutError as error:
            if accepted is None or isinstance(error, DeadlineExceeded):
                raise
            self._withdraw(accepted, request.tenant)
            raise DeadlineExceeded(request.tenant, "timeout", timeout or 0.0) from None
        except (asyncio.CancelledError, GeneratorExit):
            if accepted is not None:
                self._withdraw(accepted, request.tenant)
            raise
        finally:
            self._pending -= 1
            if not self._pending:
                self._quiet.set()

    def _withdraw(self, accepted: Accepted, tenant: str) -> None:
        if accepted.new:
            self.store.cancel_soon(accepted.id, tenant)

    async def enqueue(self, tenant: str, prompt: Prompt, *, connection: Any = None, **wishes: Any) -> Ticket:
        """See `Scheduler.enqueue`. The job is committed when this returns.

        `connection`: an asyncpg connection with a transaction of your own; the job is accepted with its
        commit.
        """
        if self.closed:
            raise SchedulerClosed("the scheduler is closed")
        request = self._request(tenant, prompt, **wishes)
        if connection is None:
            accepted = await self.store.submit(request)
        else:
            accepted = await self.store.submit_in(connection, request)
        return DurableTicket(self, accepted.known(tenant))

    async def ticket(self, job: str, *, tenant: str) -> Ticket:
        """Find a job by its id, from any process. Raises LookupError if the tenant has no such job."""
        known = await self.store.look(int(job), check_tenant(tenant)) if job.isdecimal() else None
        if known is None:
            raise LookupError(f"job: tenant {tenant!r} has none with id {job!r}")
        return DurableTicket(self, known)

    def _request(
        self,
        tenant: str,
        prompt: Prompt,
        *,
        session: str | None = None,
        timeout: float | None = None,
        policy: Policy | None = None,
        priority: float = 0,
        cost: Cost | None = None,
        gate: str | None = None,
        key: str | None = None,
    ) -> Request:
        check_tenant(tenant)
        check_prompt(prompt, self._max_prompt_bytes)
        if gate is not None:
            raise ValueError(f"gate: a store has no shared gates yet, got {gate!r}")
        return Request(
            tenant=tenant,
            prompt=json.dumps(prompt),
            quota=self.engine.quota_of(tenant),
            policy=self._policy_of(tenant) if policy is None else instance("policy", policy, Policy),
            cost=ONE if cost is None else instance("cost", cost, Cost),
            head_start=check_priority(priority, self._max_head_start) if priority else 0,
            session=None if session is None else instance("session", session, str),
            timeout=None if timeout is None else check_timeout(timeout),
            key=None if key is None else check_key(key),
        )

    async def result_of(self, job: int) -> Any:
        """Wait for a job's result, or raise what became of it instead."""
        outcome = await asyncio.shield(self.store.await_outcome(job))
        if outcome.state == DONE:
            return load(outcome.result or "")
        raise error_of(outcome)

    async def quote(
        self, tenant: str, *, cost: Cost | None = None, priority: float = 0, gate: str | None = None
    ) -> Quote:
        """What a job would get if it were submitted now. Leaves no trace."""
        request = self._request(tenant, "quote", cost=cost, priority=priority, gate=gate)
        found, now = await self.store.quote(request)
        wait, expected = max(0, found.promised - now), max(0, found.expected - now)
        return Quote(found.position, wait / NS, expected / NS, found.binds)

    def admit(self, tenant: str, **wishes: Any) -> Grant:
        """Not over a store: a block that runs here would be unknown to it."""
        raise NotImplementedError("admit: not over a store; submit the work as a job")

    async def on_before_message(self, message: HasTenant) -> Grant | None:
        """A before-hook for an agent in a worker: the first message of a job has been paid with its grant.

        Raises NotImplementedError for any other message: it would pass the store by.
        """
        held = current_turn.get()
        host: Any = None if held is None or held.tenant != message.tenant else held.scheduler
        if held is not None and host is self.store and held.state is GRANTED and held.free_message:
            held.free_message = False
            return None
        raise NotImplementedError("on_before_message: over a store, only a job's first message passes a hook")

    # --- tenants ------------------------------------------------------------------------------------

    async def set_quota(self, tenant: str, quota: Quota) -> None:
        """Change a tenant's limits now, for all processes, with its jobs waiting.

        Levels are kept, and waiting jobs that can never fit any more fail with `QuotaExceeded`.
        """
        first = self.engine.quota_of(check_tenant(tenant))
        await self.store.set_quota(tenant, instance("quota", quota, Quota), first)

    async def statistics(self, tenant: str | None = None) -> Statistics:
        """A snapshot of what is in the store: of everything, or of one tenant."""
        counts = await self.store.count(None if tenant is None else check_tenant(tenant))
        return Statistics(**counts)
