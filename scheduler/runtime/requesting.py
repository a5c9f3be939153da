"""What is asked of a store: the arguments of a call, checked, as a request."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from scheduler.core.policy import Policy
from scheduler.core.quota import ONE, Cost, instance
from scheduler.runtime.arguments import (
    check_name,
    check_priority,
    check_prompt,
    check_tenant,
    check_timeout,
)
from scheduler.runtime.gated import Gated
from scheduler.runtime.job import Prompt
from scheduler.stores.results import MOST_BYTES
from scheduler.stores.values import Request


class Requesting(Gated):
    """Makes requests of arguments."""

    def _job(self, tenant: str, prompt: Prompt, **wishes: Any) -> Request:
        """The request of a job: it may have a ladder, and is charged an estimate if it names no cost."""
        return self._request(tenant, prompt, **wishes, job=True)

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
        job: bool = False,
    ) -> Request:
        check_tenant(tenant)
        check_prompt(prompt, self._bounds.max_prompt_bytes)
        policy = self._policy_of(tenant) if policy is None else instance("policy", policy, Policy)
        if policy.ladder:
            policy = self._with_ladder(policy) if job else replace(policy, ladder=())
        text = json.dumps(prompt)
        if len(text) > MOST_BYTES:
            raise ValueError(f"prompt: must have at most {MOST_BYTES} bytes as JSON, got {len(text)}")
        quota, gate = self.engine.quota_of(tenant), self._gate_for(gate)
        return Request(
            tenant=tenant,
            prompt=text,
            quota=quota,
            policy=policy,
            cost=ONE if cost is None else instance("cost", cost, Cost),
            head_start=check_priority(priority, self._bounds.max_head_start) if priority else 0,
            session=None if session is None else check_name("session", session),
            timeout=None if timeout is None else check_timeout(timeout),
            key=None if key is None else check_name("key", key),
            gate=gate,
            most_deferred=self.engine.max_deferred,
            unpriced=self._uncounted(prompt, tenant, quota, gate) if job and cost is None else None,
        )
