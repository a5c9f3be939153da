"""What a call asks for: its arguments, checked, and what it is charged if it names no cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from scheduler.core.account import Shape, shape_of
from scheduler.core.learning import within
from scheduler.core.policy import Policy, Rung
from scheduler.core.quota import NS, ONE, Cost, Quota, instance
from scheduler.errors import DeadlineExceeded, SchedulerClosed
from scheduler.runtime.arguments import (
    MAX_TENANT,
    Bounds,
    check_name,
    check_priority,
    check_tenant,
    check_timeout,
)
from scheduler.runtime.grant import Turn
from scheduler.runtime.job import Job
from scheduler.runtime.reports import Reports

Quotas = Quota | Mapping[str, Quota] | Callable[[str], Quota]


T = TypeVar("T", bound=Turn)


class Asking(Reports):
    """Makes turns of arguments, and estimates what they will use where tokens are limited.

    `metering`: whether anybody's may be; most schedulers count requests only and never ask further.
    """

    metering = False
    _gate: str | None
    _policy: Policy | None
    _policy_of: Callable[[str], Policy]
    _bounds: Bounds
    _ladder: Sequence[Rung] = ()

    def _ask(
        self, kind: type[T], tenant: str, policy: Policy | None, cost: Cost | None, gate: str | None
    ) -> T:
        """Check the arguments that every call has, and make the turn that it asks for."""
        if tenant.__class__ is not str or not 0 < len(tenant) <= MAX_TENANT or not tenant.isprintable():
            check_tenant(tenant)
        name = self._gate
        if gate is not None or name is None:
            if gate is not None and instance("gate", gate, str) in self.engine.gates:
                name = gate
            else:
                raise ValueError(f"gate: must be one of {sorted(self.engine.gates)}, got {gate!r}")
        if policy is not None:
            instance("policy", policy, Policy)
        else:
            policy = self._policy or self._policy_of(tenant)
        charged = ONE if cost is None else instance("cost", cost, Cost)
        if not policy.ladder:
            return kind(self, tenant, name, policy, charged)  # type: ignore[arg-type] # it is the Scheduler
        if not issubclass(kind, Job):
            # A grant's call is its caller's own, and cannot be changed here.
            return kind(self, tenant, name, replace(policy, ladder=()), charged)  # type: ignore[arg-type]
        if policy.ladder is not self._ladder:
            self._check_ladder(policy)
        turn = kind(self, tenant, name, policy, charged)  # type: ignore[arg-type]
        turn.plain = False
        return turn

    def _refine(self, turn: Turn, session: str | None, timeout: float | None, priority: float) -> None:
        """Check the arguments that few calls have."""
        if session is not None:
            turn.session, turn.plain = check_name("session", session), False
        if timeout is not None:
            turn.expires, turn.plain = self._now() + check_timeout(timeout), False
        if priority != 0:
            turn.head_start, turn.plain = check_priority(priority, self._bounds.max_head_start), False

    def _check_ladder(self, policy: Policy) -> None:
        """Every gate of a ladder must be there, and somebody to take deferred jobs."""
        gates = self.engine.gates
        for rung in policy.ladder:
            name = rung.gate or (None if self._gate == "" else rung.model)
            if name is not None and name not in gates:
                raise ValueError(f"ladder: there is no gate {name!r} for {rung!r}, only {sorted(gates)}")
            if rung.defer is not None and not self.engine.max_deferred:
                raise ValueError(f"ladder: {rung!r} needs a scheduler with deferred=, which takes such jobs")
        self._ladder = policy.ladder

    # --- reserving ----------------------------------------------------------------------------------

    def _begin_metering(self, quotas: Quotas) -> None:
        if isinstance(quotas, Quota):
            unknown = shape_of(quotas).metered
        elif isinstance(quotas, Mapping):
            given: list[Any] = list(quotas.values())  # which are checked when they are needed
            unknown = any(shape_of(quota).metered for quota in given if isinstance(quota, Quota))
        else:
            unknown = True  # nobody knows before the tenant is seen
        if unknown or any(gate.shape.metered for gate in self.engine.gates.values()):
            self.metering = True

    def _metered(self, turn: Turn) -> tuple[Shape, Shape] | None:
        """The shapes of the job's tenant and gate, if one of them limits tokens."""
        gate, known = self.engine.gates[turn.gate].shape, self.engine.tenants.get(turn.tenant)
        own = shape_of(self.engine.quota_of(turn.tenant)) if known is None else known.shape
        return (own, gate) if own.metered or gate.metered else None

    def reserve(self, turn: Turn, prompt: Any) -> bool:
        """Fix what a job is charged, by an estimate. False if counting takes a while: then await `count`."""
        shapes = self._metered(turn)
        if shapes is None:
            return True
        if self.estimates.takes_a_while:
            return False
        self._charge(turn, self.estimates.count(prompt), *shapes)
        return True

    async def count(self, turn: Turn, prompt: Any) -> None:
        """The same, by a count that has to be awaited: within the job's time limit, and while open."""
        left = None if turn.expires is None else max(0, turn.expires - self._now()) / NS
        self.expect(turn, await self._count_later(turn.tenant, prompt, left))

    async def _count_later(self, tenant: str, prompt: Any, left: float | None) -> int:
        """How many input tokens a prompt has, within so many seconds, and while open."""
        if self.closed:
            raise SchedulerClosed("the scheduler is closed")
        bound, counting = asyncio.timeout(left), self._counting or set()
        self._counting = counting
        try:
            async with bound:
                counting.add(bound)
                return await self.estimates.count_later(prompt)
        except TimeoutError:
            if not bound.expired():
                raise
            if self._cancelling:
                raise SchedulerClosed("the scheduler was closed while the call waited") from None
            raise DeadlineExceeded(tenant, "timeout", left or 0.0) from None
        finally:
            counting.discard(bound)
            self.changed()

    async def _count_and_perform(self, job: Job) -> Any:
        await self.count(job, job.prompt)
        return await self.perform(job)

    def expect(self, turn: Turn, counted: int) -> None:
        """Charge a turn an estimate for a prompt of so many tokens, if its tokens are limited."""
        shapes = self._metered(turn)
        if shapes is not None:
            self._charge(turn, counted, *shapes)

    def _charge(self, turn: Turn, counted: int, own: Shape, gate: Shape) -> None:
        cost = self.estimates.estimate(turn.tenant, turn.gate, counted)
        turn.cost, turn.counted, turn.plain = within(cost, counted, own, gate), counted, False
