"""What is asked of a store: the arguments of a call, checked, as a request."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from scheduler.core.policy import Policy
from scheduler.core.quota import ONE, Cost, instance
from scheduler.runtime.arguments import (
    check_priority,
    check_prompt,
    check_session,
    check_tenant,
    check_timeout,
)
from scheduler.runtime.durable_ticket import check_key
from scheduler.runtime.gated import Gated
from scheduler.runtime.job import Prompt
from scheduler.stores.values import Request


class Requesting(Gated):
    """Makes requests of arguments."""

    def _job(self, tenant: str, prompt: Prompt, *, cost: Cost | None = None, **wishes: Any) -> Request:
        request = self._request(tenant, prompt, cost=cost, **wishes)
        return self._unpriced(request, prompt) if cost is None else request

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
        ladder: bool = False,
    ) -> Request:
        check_tenant(tenant)
        check_prompt(prompt, self._bounds.max_prompt_bytes)
        policy = self._policy_of(tenant) if policy is None else instance("policy", policy, Policy)
        if policy.ladder:
            policy = self._with_ladder(policy) if ladder else replace(policy, ladder=())
        return Request(
            tenant=tenant,
            prompt=json.dumps(prompt),
            quota=self.engine.quota_of(tenant),
            policy=policy,
            cost=ONE if cost is None else instance("cost", cost, Cost),
            head_start=check_priority(priority, self._bounds.max_head_start) if priority else 0,
            session=None if session is None else check_session(session),
            timeout=None if timeout is None else check_timeout(timeout),
            key=None if key is None else check_key(key),
            gate=self._gate_for(gate),
            most_deferred=self.engine.max_deferred,
        )
