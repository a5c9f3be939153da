"""Jobs that nobody awaits: `enqueue`, one at a time or many in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from scheduler.core.entry import RUNNING
from scheduler.core.policy import Policy
from scheduler.core.quota import Cost
from scheduler.errors import SchedulerClosed, SchedulerError
from scheduler.runtime.arguments import check_prompt
from scheduler.runtime.asking import Asking
from scheduler.runtime.job import Prompt, QueuedJob, Ticket
from scheduler.runtime.many import each


def no_store(**given: Any) -> None:
    """Refuse arguments that only a store has a use for."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}: needs a store, and this scheduler has none")


class Enqueuing(Asking):
    """Lets jobs wait that run in the scheduler's task group."""

    async def enqueue(
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
        connection: Any = None,
    ) -> Ticket:
        """Like `submit`, but return a `Ticket` at once; the handler runs in the scheduler's task group.

        `connection`: over a PostgreSQL store, one with a transaction of your own that the job is part of.
        """
        no_store(connection=connection)
        job, is_priced = self._queued(tenant, prompt, session, timeout, policy, priority, cost, gate, key)
        if not is_priced:
            await self.count(job, prompt)
        return self._let_wait(job)

    async def enqueue_many(
        self, jobs: Iterable[Mapping[str, Any]], *, connection: Any = None
    ) -> list[Ticket | Exception]:
        """Enqueue up to 1,000 jobs in one call; each is a mapping of the arguments of `enqueue`.

        The answers are in the same order: for each job its `Ticket`, or the exception that `enqueue` would
        have raised, as from ``asyncio.gather(…, return_exceptions=True)``. Each job is judged as if it had
        been enqueued alone right then, behind those before it; a refusal concerns nobody else.

        Bad arguments raise ValueError or TypeError before anything is accepted, with the index of the job.
        `connection`: as for `enqueue`. Over a store all jobs commit together, in your transaction or in one
        of their own.
        """
        no_store(connection=connection)
        queued = each(jobs, self._queued_of_many)
        if self.closed:
            raise SchedulerClosed("the scheduler is closed")
        uncounted = [job for job, is_priced in queued if not is_priced]
        counted = await asyncio.gather(
            *(self.count(job, job.prompt) for job in uncounted), return_exceptions=True
        )
        failed = {
            id(job): error
            for job, error in zip(uncounted, counted, strict=True)
            if isinstance(error, Exception)
        }
        return [failed.get(id(job)) or self._answer(job) for job, _ in queued]

    def _queued_of_many(self, tenant: str, prompt: Prompt, **wishes: Any) -> tuple[QueuedJob, bool]:
        """The same as `_queued`; that nobody knows the tenant's quota shows before others are accepted."""
        queued = self._queued(tenant, prompt, **wishes)
        if tenant not in self.engine.tenants:
            self.engine.quota_of(tenant)
        return queued

    def _answer(self, job: QueuedJob) -> Ticket | Exception:
        try:
            return self._let_wait(job)
        except SchedulerError as error:
            return error.with_traceback(None)  # which would keep this call alive

    def _queued(  # noqa: PLR0917 - as `enqueue` has them
        self,
        tenant: str,
        prompt: Prompt,
        session: str | None = None,
        timeout: float | None = None,
        policy: Policy | None = None,
        priority: float = 0,
        cost: Cost | None = None,
        gate: str | None = None,
        key: str | None = None,
    ) -> tuple[QueuedJob, bool]:
        """The job that is asked for, all of it checked. False: what it costs takes a count."""
        no_store(key=key)
        job = self._ask(QueuedJob, tenant, policy, cost, gate)
        self._refine(job, session, timeout, priority)
        if self._handler is None:
            raise TypeError("handler: submit and enqueue need a scheduler with one, got None")
        check_prompt(prompt, self._bounds.max_prompt_bytes)
        job.prompt, job.timeout = prompt, timeout
        return job, cost is not None or not self.metering or self.reserve(job, prompt)

    def _let_wait(self, job: QueuedJob) -> Ticket:
        """Have a job decided about. Raises its refusal."""
        job.ticket = ticket = Ticket(job)
        self.offer(job)
        if job.state is RUNNING:
            self.resuming += 1
            self.start(ticket)
        return ticket
