"""The in-process scheduler: lines and buckets in front of a handler."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from scheduler.core.account import shape_of
from scheduler.core.engine import Engine
from scheduler.core.entry import RUNNING
from scheduler.core.policy import LONGEST_NAME, Overload, Policy
from scheduler.core.quota import NS, Cost, Quota, instance, plain_text, whole
from scheduler.core.signals import News, Upstream
from scheduler.runtime.arguments import Bounds, check_prompt, check_tenant, chooser
from scheduler.runtime.asking import Quotas
from scheduler.runtime.clock import Clock, MonotonicClock
from scheduler.runtime.enqueuing import Enqueuing, no_store
from scheduler.runtime.estimates import Estimates
from scheduler.runtime.grant import Cover, Grant, covering
from scheduler.runtime.job import Handler, Job, Prompt, Ticket
from scheduler.runtime.values import Quote

if TYPE_CHECKING:
    from scheduler.runtime.outage import Outage

Gates = Quota | Upstream | Mapping[str, Quota | Upstream]
Policies = Policy | Mapping[str, Policy] | Callable[[str], Policy]


class HasTenant(Protocol):
    """What a before-hook needs to know of a message."""

    @property
    def tenant(self) -> str:
        """Who pays for it."""


class Scheduler(Enqueuing):
    """Gives each tenant a line and a bucket, and runs `handler` for each job when its turn has come.

    `quotas` and `policy`: one for everyone, a mapping by tenant, or a callable of the tenant. `gates`: None,
    a `Quota` or `Upstream` shared by all tenants, or a mapping of names to them. `max_waiting`: waiting jobs
    over all tenants; `max_running`: jobs that run at once; `max_attempts`: tries of a job whose handler
    raises `Retry`; `run_timeout`: seconds for every try; `max_prompt_bytes` and `max_head_start` (seconds)
    bound `prompt` and `priority`. `deferred`: the handler of jobs that a rung defers, which no `run_timeout`
    bounds, for at most `max_deferred` at a time. `estimates`: what jobs that name no cost are charged where
    tokens are limited. `overload`: the order of lines that are late. `listener`: called with each `News` of a
    gate, or of the store. `outage`: what calls do while that is down. `clock`: the monotonic clock, unless a
    test brings another.

    Use it as an async context manager: leaving the block waits for all jobs (or, after an exception, cancels
    them). Without a shared store every process has its own buckets: N processes give N times the rate.
    """

    def __new__(cls, *_: Any, store: Any = None, **__: Any) -> Scheduler:
        """With a store, one that commits jobs there."""
        from scheduler.runtime.durable import DurableScheduler  # noqa: PLC0415 - which is made of this class

        return object.__new__(cls if store is None else DurableScheduler)

    def __init__(
        self,
        handler: Handler | None = None,
        *,
        quotas: Quotas = Quota(),  # noqa: B008 - a frozen value
        gates: Gates | None = None,
        policy: Policies = Policy(),  # noqa: B008 - a frozen value
        max_waiting: int = 100_000,
        max_running: int = 256,
        max_attempts: int = 5,
        run_timeout: float = 600.0,
        max_prompt_bytes: int = 32_000_000,
        max_head_start: float = 60.0,
        store: Any = None,
        outage: Outage | None = None,
        deferred: Handler | None = None,
        max_deferred: int = 10_000,
        estimates: Estimates | None = None,
        overload: Overload | None = None,
        listener: Callable[[News], object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        no_store(outage=outage)  # the scheduler over one has taken it already
        self._policy_of = chooser("policy", policy, Policy)
        self._policy = policy if isinstance(policy, Policy) else None
        quota_of = chooser("quotas", quotas, Quota)
        shared = {"": Quota()} if gates is None else gates if isinstance(gates, Mapping) else {"": gates}
        for name in shared:
            if len(plain_text("gates: a name", instance("gates: a name", name, str))) > LONGEST_NAME:
                raise ValueError(f"gates: a name must have at most {LONGEST_NAME} characters, got {name!r}")
        if listener is not None and not callable(listener):
            raise TypeError(f"listener: must be a callable, got {listener!r}")
        if not shared:
            raise ValueError("gates: must not be an empty mapping")
        self._gate = next(iter(shared)) if len(shared) == 1 else None
        bounds = Bounds.of(max_attempts, run_timeout, max_prompt_bytes, max_head_start)
        whole("max_running", max_running, 1)
        clock = MonotonicClock() if clock is None else clock
        engine = Engine(clock.now(), quota_of, shared, max_running)
        engine.max_waiting = whole("max_waiting", max_waiting, 1)
        super().__init__(engine, clock, handler, bounds)
        if deferred is not None and not callable(deferred):
            raise TypeError(f"deferred: must be an async callable, got {deferred!r}")
        if deferred is not None:
            self._deferred = deferred
        engine.max_deferred = whole("max_deferred", max_deferred, 1) if deferred is not None else 0
        if overload is not None:
            engine.overload = instance("overload", overload, Overload)
        if estimates is not None:
            self.estimates = instance("estimates", estimates, Estimates)
        if listener is not None:
            self.listener = listener
        self._begin_metering(quotas)
        self.name = secrets.token_hex(4)

    # --- submitting ---------------------------------------------------------------------------------

    def submit(
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
    ) -> Coroutine[Any, Any, Any]:
        """``await scheduler.submit(tenant, prompt)``: send a prompt through its tenant's line.

        Returns what the handler returned. Arguments are checked by the call, the line is joined by the await.

        The handler runs in the caller's task; cancelling that task withdraws a waiting job and cancels a
        running one. `session`: jobs of one session run one after the other. `timeout`: seconds from here to
        the result. `policy`: instead of the tenant's. `priority`: a head start in the line, in seconds.
        `cost`: what it will use; one request, and an estimate of its tokens where these are limited.
        `gate`: which of several gates it passes.

        Raises `ErrRateLimited` (refused, with the time to come back), `QuotaExceeded` (can never fit),
        `DeadlineExceeded`, `JobFailed` (a handler that asked for `Retry` too often), `SchedulerClosed`,
        ValueError or TypeError for a bad argument, and whatever else the handler raises, unchanged.
        """
        job = self._ask(Job, tenant, policy, cost, gate)
        if session is not None or timeout is not None or priority != 0 or key is not None:
            no_store(key=key)
            self._refine(job, session, timeout, priority)
        if self._handler is None:
            raise TypeError("handler: submit and enqueue need a scheduler with one, got None")
        check_prompt(prompt, self._bounds.max_prompt_bytes)
        job.prompt, job.timeout = prompt, timeout
        if cost is None and self.metering and not self.reserve(job, prompt):
            return self._count_and_perform(job)
        return self.perform(job)

    async def ticket(self, job: str, *, tenant: str) -> Ticket:
        """Find a job of a store by its id, from any process. Raises ValueError without a store."""
        raise ValueError("ticket: needs a store, and this scheduler has none")

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
        """``async with scheduler.admit(tenant) as grant``: wait for a turn, run the block, settle.

        Arguments and errors are those of `submit`; `timeout` bounds the wait. The block may call
        ``grant.settle(usage)`` itself.
        """
        grant = self._ask(Grant, tenant, policy, cost, gate)
        if timeout is not None or priority != 0:
            self._refine(grant, None, timeout, priority)
        return grant

    async def quote(
        self, tenant: str, *, cost: Cost | None = None, priority: float = 0, gate: str | None = None
    ) -> Quote:
        """What a job would get if it were submitted now. Leaves no trace."""
        grant = self._ask(Grant, tenant, None, cost, gate)
        self._refine(grant, None, None, priority)
        if cost is None and self.metering:
            self.expect(grant, 0)
        now = self._now()
        outlook = self.engine.quote(now, tenant, grant.gate, grant)
        self.changed()
        return Quote(
            outlook.position,
            max(0, outlook.promised - now) / NS,
            max(0, outlook.expected - now) / NS,
            outlook.binds,
        )

    # --- the hook, and the rest -----------------------------------------------------------------------

    async def on_before_message(self, message: HasTenant) -> Grant | None:
        """A before-hook for an agent: waits for the message's turn, or raises, by the tenant's policy.

        Returns a `Grant` that the agent must settle once. The first message of a job that came through
        `submit` or `enqueue`, or of a request under the middleware, has been paid with that: its grant takes
        no permit, and passes on to the job or request what the call used and how the upstream took it. Later
        messages of such a run take permits by the run's key, reuse its slot, and wait even under a strict
        policy, since tools have acted by then. A message that is `deferred` takes no permits, and gets None:
        it goes upstream in a batch, which no gate counts.
        """
        if getattr(message, "deferred", False):
            return None
        held = covering(self)
        grant = self._ask(Grant, message.tenant, None, None, None if held is None else held.gate)
        if held is not None and held.tenant == message.tenant:
            if held.free_message:
                return Cover(held)
            grant.holder, grant.plain = held, False
            if grant.policy.max_wait == 0:
                grant.policy = Policy()
        prompt = getattr(message, "prompt", "")
        if self.metering and not self.reserve(grant, prompt):
            await self.count(grant, prompt)
            if held is not None and held.state is not RUNNING:
                grant.holder = None  # its run is over: it has no slot any more that this could use
        if not self.offer(grant):
            await self.turn(grant)
        return grant

    async def forget(self, tenant: str) -> None:
        """Cancel the tenant's waiting jobs and running handlers, and keep nothing of it but what limits it.

        Their callers get `JobFailed` of kind ``"cancelled"``, and so do calls of `admit` that wait; blocks
        that run under `admit` are their callers' own, and go on. Buckets stay until they are full, as they do
        anyway, and a quota of `set_quota` stays. Sessions belong to whoever keeps them: see `Agent`. Over a
        store, prompts, results and sessions are deleted too.
        """
        await self.cancel_all(check_tenant(tenant))

    async def set_quota(self, tenant: str, quota: Quota) -> None:
        """Change a tenant's limits now, with its jobs waiting; from here on it overrides `quotas`.

        Levels are kept, and waiting jobs that can never fit any more fail with `QuotaExceeded`.
        """
        self.engine.set_quota(self._now(), check_tenant(tenant), instance("quota", quota, Quota))
        self.metering = self.metering or shape_of(quota).metered
        self.changed()
