"""One try of a stored job: what its handler sees, how it is interrupted, and how it ended."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from scheduler.core.entry import ENDED
from scheduler.core.entry import RUNNING as GRANTED
from scheduler.core.policy import Policy
from scheduler.core.quota import NOTHING, amount
from scheduler.core.signals import Signal
from scheduler.errors import Retry, SchedulerClosed
from scheduler.runtime.admission import ensure_open, grow, hear
from scheduler.runtime.grant import current_turn, is_stray, kind_of
from scheduler.runtime.job import Handler, Job, short
from scheduler.stores.results import MOST_BYTES, dump
from scheduler.stores.values import CANCELLED, DONE, FAILED, Again, Claim, Ended

POLICY = Policy()

FOR_GOOD = frozenset({"timeout", "run_timeout", "cancelled"})
"""Interruptions after which nobody goes on with a job."""


class WorkerJob(Job):
    """One job as its handler sees it, in a worker."""

    __slots__ = ("claim", "store")

    def __init__(self, store: Any, claim: Claim) -> None:
        super().__init__(store, claim.tenant, claim.gate, POLICY, claim.cost)
        self.arrival, self.promised, self.slot = claim.arrival, claim.promised, claim.slot
        self.sequence, self.session, self.expires = claim.id, claim.session, claim.deadline
        self.state = GRANTED
        self.prompt, self.timeout = json.loads(claim.prompt), None
        self.claim, self.store = claim, store
        if claim.plan is not None:
            self.rung, self.predicted, self.model, self.max_tokens, self.deferred = claim.plan
        self.attempt = claim.attempt
        self.tries = claim.tries
        self.remembered = claim.memory

    @property
    def survives(self) -> bool:
        """See `Job.survives`."""
        return self.deferred and self.stopped not in FOR_GOOD

    async def remember(self, text: str) -> bool:
        """See `Job.remember`."""
        if not self.deferred:
            raise RuntimeError("only a deferred job of a store can remember something")
        kept: bool = await self.store.remember(self.claim, short(text))
        if kept:
            self.remembered = text
        return kept

    def hear(self, signal: Signal) -> None:
        """See `Turn.hear`: the gate in the store hears of it before it hears how this try ended."""
        hear(self.store, self, signal)

    def grow(self, output_tokens: int) -> None:
        """See `Turn.grow`; charged in the store in steps of a quarter."""
        grow(self.store, self, amount("output_tokens", output_tokens))

    def ensure_open(self) -> None:
        """See `Turn.ensure_open`; a process hears from others in the time of a notification."""
        ensure_open(self.store, self)

    @property
    def id(self) -> str:
        """The number that the store gave it."""
        return str(self.claim.id)


class Try:
    """One try under way, from its claim until it is recorded.

    `reason`: why it was interrupted: cancelled, lost, stopped, timeout or run_timeout; closed if its handler
    takes no more jobs. `placed`: its item among the time limits. `job`: what its handler sees.
    """

    __slots__ = ("begun", "claim", "job", "over", "placed", "reason", "task")

    task: asyncio.Task[None]

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.begun = self.over = False
        self.reason: str | None = None
        self.job: WorkerJob | None = None
        self.placed: tuple[Any, ...] | None = None

    @property
    def deferred(self) -> bool:
        """Whether it is one of a job that a ladder deferred."""
        return self.claim.plan is not None and self.claim.plan.deferred

    def interrupt(self, reason: str) -> None:
        """Cancel the handler, once. One that has ended stays as it ended: that only has to be recorded."""
        if self.reason is None and not self.over:
            self.reason = reason
            if self.job is not None:
                self.job.stopped = reason
            if self.begun:  # a task that is cancelled before its first step never gets to record anything
                self.task.cancel()

    async def run(self, handler: Handler, store: Any, max_attempts: int) -> Ended | Again | None:
        """Run the handler. How it ended, for the record; None if the job is somebody else's by now."""
        self.begun = True
        job = self.job = WorkerJob(store, self.claim)
        if self.reason is not None:
            job.usage = NOTHING  # the handler never began
            return self._interrupted(job)
        current_turn.set(job)
        try:
            result = await handler(job)
            return self._done(job, result)
        except Retry as retry:
            return self._again(job, retry, store.about(), max_attempts)
        except asyncio.CancelledError as error:
            if job.stopped is None and is_stray(error):
                return self._ended(job, FAILED, kind=kind_of(error))
            return self._interrupted(job)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is recorded
            if isinstance(error, SchedulerClosed) and job.survives:
                return self._closed(job)
            return self._ended(job, FAILED, kind=kind_of(error))
        finally:
            job.state = ENDED

    def _ended(self, job: Job, state: int, result: str | None = None, kind: str | None = None) -> Ended:
        claim, usage = self.claim, job.usage
        plain = claim.session is None and (usage is None or usage.requests == claim.cost.requests)
        return Ended(claim.id, claim.tenant, claim.tries, state, result, kind, usage, plain)

    def _done(self, job: Job, result: Any) -> Ended:
        try:
            text = dump(result)
        except (TypeError, ValueError, RecursionError):
            return self._ended(job, FAILED, kind="result_is_not_json")
        if len(text) > MOST_BYTES:
            return self._ended(job, FAILED, kind="result_is_too_large")
        return self._ended(job, DONE, text)

    def _again(self, job: Job, retry: Retry, about: int, max_attempts: int) -> Ended | Again:
        """Another try after `Retry`, unless it was the last attempt or comes too late."""
        claim, kind = self.claim, kind_of(retry.__cause__ or retry)
        if not retry.refused and claim.attempt >= max_attempts:
            return self._ended(job, FAILED, kind=kind)
        after = retry.after_ns
        if not retry.refused and claim.deadline is not None and about + after >= claim.deadline:
            return self._ended(job, FAILED, kind="timeout")
        return Again(claim.id, claim.tenant, claim.tries, after, retry.refused, not retry.refused, job.usage)

    def _closed(self, job: Job) -> Ended | Again | None:
        """The handler takes no more jobs, this one included: another worker goes on with it."""
        self.reason = self.reason or "closed"
        return self._interrupted(job)

    def _interrupted(self, job: Job) -> Ended | Again | None:
        claim, reason = self.claim, self.reason
        if reason in {"timeout", "run_timeout"}:
            return self._ended(job, FAILED, kind=reason)
        if reason == "cancelled":
            return self._ended(job, CANCELLED, kind="cancelled")
        if reason == "lost":
            return None  # somebody else has it
        if reason is None:
            raise asyncio.CancelledError  # the whole worker is torn down: the lease tells the others
        return Again(claim.id, claim.tenant, claim.tries, counted=False, usage=job.usage)
