"""The scheduler over a store: jobs are committed here, run by workers, and their results come back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from scheduler.core.policy import Policy
from scheduler.core.quota import NS, Cost, Quota, instance
from scheduler.errors import DeadlineExceeded, ErrRateLimited, SchedulerClosed
from scheduler.runtime.admission import StoredGrant
from scheduler.runtime.arguments import check_tenant
from scheduler.runtime.durable_ticket import DurableTicket, error_of
from scheduler.runtime.grant import Cover, Grant, Turn, covering
from scheduler.runtime.job import Prompt, Ticket
from scheduler.runtime.many import each
from scheduler.runtime.outage import Outage
from scheduler.runtime.reports import Levels, levels_of
from scheduler.runtime.requesting import Requesting
from scheduler.runtime.scheduler import HasTenant
from scheduler.runtime.standing_in import StandingIn
from scheduler.runtime.values import Quote
from scheduler.stores.protocol import Store
from scheduler.stores.results import MOST_BYTES, load
from scheduler.stores.values import DONE, Accepted, Answer, Holder, Request

DIGITS = 20
"""The number of a job has fewer."""


class DurableScheduler(Requesting):
    """A `Scheduler` with a store. Its own process runs no job: `Worker` does, there or anywhere else."""

    store: Store

    def __init__(self, *arguments: Any, store: Store, outage: Outage | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.store = store
        self._begin_gates(settings.get("gates") is not None)
        self._begin_watch(Outage() if outage is None else instance("outage", outage, Outage))

    # --- life ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        try:
            await self._declare()
        except BaseException:
            await self.store.__aexit__(None, None, None)
            raise
        await self._open_watch()
        self.closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.aclose(drain=kind is None)
        finally:
            try:
                await self._close_watch()
            finally:
                self._listen_no_more()
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

        While the store is down it is refused, whatever the `Outage` says: nobody may lose what was accepted.

        Cancelling the call withdraws it while it waits, and has its handler cancelled while it runs. `key`:
        at most one job of the tenant is ever accepted under it; a second call gets the first one's result.
        Raises `JobFailed` where a handler's exception would reach the caller in process.
        """
        return self._submit(self._job(tenant, prompt, **wishes), wishes.get("timeout"))

    async def _submit(self, request: Request, timeout: float | None) -> Any:
        if self.closed:
            raise SchedulerClosed("the scheduler is closed")
        self._pending += 1
        accepted: Accepted | None = None
        try:
            accepted = await self._accept(request)
            async with asyncio.timeout(None if timeout is None else self.store.until(accepted.deadline)):
                return await self.result_of(accepted.id, request.tenant)
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

    async def enqueue(
        self, tenant: str, prompt: Prompt, *, connection: Any = None, **wishes: Any
    ) -> DurableTicket:
        """See `Scheduler.enqueue`. The job is committed when this returns.

        `connection`: an asyncpg connection with a transaction of your own; the job is accepted with its
        commit.
        """
        if self.closed:
            raise SchedulerClosed("the scheduler is closed")
        request = self._job(tenant, prompt, **wishes)
        if connection is None:
            accepted = await self._accept(request)
            return DurableTicket(self, accepted.known(tenant), new=accepted.new)
        (answer,) = await self._accept_in(connection, [request])
        if isinstance(answer, Exception):
            raise answer
        return DurableTicket(self, answer.known(tenant), committed=False, new=answer.new)

    async def enqueue_many(
        self, jobs: Iterable[Mapping[str, Any]], *, connection: Any = None
    ) -> list[Ticket | Exception]:
        """See `Scheduler.enqueue_many`: one transaction for all, over in a bounded number of statements.

        While it lasts nobody else decides anything about the tenants of these jobs. A call that is cancelled
        meanwhile withdraws all of them.
        """
        if self.closed:
            raise SchedulerClosed("the scheduler is closed")
        requests = each(jobs, self._job)
        size = sum(len(request.prompt or "") for request in requests)
        if size > MOST_BYTES:
            raise ValueError(f"jobs: must have at most {MOST_BYTES} bytes in all prompts, got {size}")
        answers = await (
            self._with_counts(requests, self._commit_together)
            if connection is None
            else self._accept_in(connection, requests)
        )
        return [
            answer
            if isinstance(answer, Exception)
            else DurableTicket(
                self, answer.known(request.tenant), committed=connection is None, new=answer.new
            )
            for request, answer in zip(requests, answers, strict=True)
        ]

    async def _accept_in(self, connection: Any, requests: Sequence[Request]) -> list[Answer]:
        for tenant in dict.fromkeys(request.tenant for request in requests):
            await self.store.home.recorded(tenant)
        return await self._with_counts(requests, partial(self.store.submit_in, connection))

    async def ticket(self, job: str, *, tenant: str) -> DurableTicket:
        """Find a job by its id, from any process. Raises LookupError if the tenant has no such job."""
        number = int(job) if job.isdecimal() and len(job) < DIGITS else 0
        known = await self.store.look(number, check_tenant(tenant))
        if known is None:
            raise LookupError(f"job: tenant {tenant!r} has none with id {job!r}")
        return DurableTicket(self, known)

    async def result_of(self, job: int, tenant: str | None = None) -> Any:
        """Wait for a job's result, or raise what became of it instead.

        `tenant`: whose it is, if it is committed; one that is not there any more is then told as forgotten.
        """
        outcome = await asyncio.shield(self.store.await_outcome(job, tenant))
        if outcome.state == DONE:
            return load(outcome.result or "")
        raise error_of(outcome)

    async def quote(
        self, tenant: str, *, cost: Cost | None = None, priority: float = 0, gate: str | None = None
    ) -> Quote:
        """What a job would get if it were submitted now. Leaves no trace."""
        request = self._request(tenant, "quote", cost=cost, priority=priority, gate=gate)
        if cost is None:
            request = self._unpriced(request, "", counted=0)
        found, now = await self._ask_or(request, self.store.quote, StandingIn.quote)
        wait, expected = max(0, found.promised - now), max(0, found.expected - now)
        return Quote(found.position, wait / NS, expected / NS, found.binds)

    # --- work that runs here ------------------------------------------------------------------------

    def admit(
        self,
        tenant: str,
        *,
        cost: Cost | None = None,
        timeout: float | None = None,
        policy: Policy | None = None,
        priority: float = 0,
        gate: str | None = None,
    ) -> Grant:
        """See `Scheduler.admit`. The caller stands in the tenant's line, behind jobs and before them.

        It needs no worker, but does not pass a job that waits for one. Its place, and then its slot, is lost
        `lease` seconds after this process has died. What the block used is recorded soon after it ends, and
        before this process asks for another turn of the tenant.
        """
        return StoredGrant.of(
            self,
            self._request(
                tenant, "admit", cost=cost, timeout=timeout, policy=policy, priority=priority, gate=gate
            ),
        )

    async def on_before_message(self, message: HasTenant) -> Grant | None:
        """A before-hook for an agent: see `Scheduler.on_before_message`.

        The first message of a worker's job, or of a request under the middleware, has been paid with its
        grant, if it is one of this very store. A later one needs no worker, like `admit`.
        """
        if getattr(message, "deferred", False):
            return None
        held = covering(self.store)
        gate = None if held is None else held.gate or None
        if held is None or held.tenant != message.tenant:
            held, request = None, self._request(message.tenant, "message", gate=gate)
        elif held.free_message:
            return Cover(held)
        else:
            request = self._next_of(held, gate)
        request = self._unpriced(request, getattr(message, "prompt", ""))
        grant = StoredGrant.of(self, await self._counted(request))
        grant.run = held.shadow if isinstance(held, StoredGrant) else None
        self.offer(grant)
        await self.turn(grant)
        return grant

    def _next_of(self, run: Turn, gate: str | None) -> Request:
        """A request for a later message of a run: by its key, in its slot, and not strict."""
        run.calls += 1
        request = self._request(run.tenant, "message", gate=gate)
        policy = Policy() if request.policy.max_wait == 0 else request.policy
        return request._replace(policy=policy, holder=Holder(run.sequence, run.tries, run.calls))

    # --- tenants ------------------------------------------------------------------------------------

    async def set_quota(self, tenant: str, quota: Quota) -> None:
        """Change a tenant's limits now, for all processes, with its jobs waiting.

        Levels are kept, and waiting jobs that can never fit any more fail with `QuotaExceeded`.
        """
        first = self.engine.quota_of(check_tenant(tenant))
        await self.store.set_quota(tenant, instance("quota", quota, Quota), first)

    async def forget(self, tenant: str) -> None:
        """Delete what the tenant left in the store: its prompts, results, keys and sessions.

        Its waiting jobs are cancelled and its running ones asked to stop; the callers of both get `JobFailed`
        of kind ``"cancelled"``, and a result that comes all the same is not kept. Calls of `admit` that wait
        get it too, in every process; blocks that run go on, and are recorded as ever. Its buckets stay until
        they are full, so that nobody gets a full one by being forgotten; so does a quota that `set_quota`
        gave.
        """
        await self.store.forget(check_tenant(tenant))

    def levels(self, tenant: str) -> Levels:
        """Raises NotImplementedError: the levels are in the store, which `current_levels` asks."""
        raise NotImplementedError("levels: over a store, await current_levels")

    async def current_levels(self, tenant: str) -> Levels:
        """See `Scheduler.levels`. While the store is down those of this process, or none."""
        request = self._request(tenant, "levels")
        try:
            found = await self._ask_or(request, self.store.see, StandingIn.account)
        except ErrRateLimited:
            return {}
        return levels_of(*found)
