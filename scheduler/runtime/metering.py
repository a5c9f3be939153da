"""Reserve: what a call that names no cost is charged at its grant, where model tokens are limited."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from scheduler.core.account import Account, Shape, shape_of
from scheduler.core.quota import DIMENSIONS, ONE, Cost, Quota
from scheduler.runtime.grant import Turn
from scheduler.runtime.reports import Reports

Quotas = Quota | Mapping[str, Quota] | Callable[[str], Quota]


class Metering(Reports):
    """Knows whose tokens are limited, and estimates what their jobs will use.

    `metering`: whether anybody's may be; most schedulers count requests only and never ask further.
    """

    metering = False
    _unknown = False

    def _begin_metering(self, quotas: Quotas) -> None:
        if isinstance(quotas, Quota):
            self._unknown = shape_of(quotas).metered
        elif isinstance(quotas, Mapping):
            given: list[Any] = list(quotas.values())  # which are checked when they are needed
            self._unknown = any(shape_of(quota).metered for quota in given if isinstance(quota, Quota))
        else:
            self._unknown = True  # nobody knows before the tenant is seen
        self.metering = self._unknown or any(gate.shape.metered for gate in self.engine.gates.values())

    def _is_metered(self, turn: Turn) -> bool:
        """Whether the job's tenant, or its gate, limits tokens."""
        if self.engine.gates[turn.gate].shape.metered:
            return True
        known = self.engine.tenants.get(turn.tenant)
        return self._unknown if known is None else known.shape.metered

    def reserve(self, turn: Turn, prompt: Any) -> Awaitable[None] | None:
        """Fix what a job is charged, by an estimate; what to await if counting its input takes a while."""
        if not self._is_metered(turn):
            return None
        counted = self.estimates.count(prompt)
        if inspect.isawaitable(counted):
            return self._reserve_later(turn, counted)
        self._reserve(turn, counted)
        return None

    async def _reserve_later(self, turn: Turn, counted: Awaitable[int]) -> None:
        self._reserve(turn, await counted)

    def _reserve(self, turn: Turn, counted: int) -> None:
        cost = self.estimates.estimate(turn.tenant, turn.gate, counted)
        accounts: list[Account | None] = [
            self.engine.gates[turn.gate],
            self.engine.tenants.get(turn.tenant),
        ]
        for account in accounts:
            if account is not None:
                cost = fitted(cost, counted, account.shape)
        turn.cost, turn.counted = cost, counted
        turn.plain = turn.plain and cost is ONE


def fitted(cost: Cost, counted: int, shape: Shape) -> Cost:
    """An estimate that was learned must not refuse a job for ever: only what was counted may be too large."""
    most = {
        DIMENSIONS[index]: scale.capacity // scale.unit
        for index, scale in zip(shape.limits, shape.scales, strict=True)
    }
    return Cost(
        cost.requests,
        min(cost.input_tokens, max(counted, most.get("input_tokens", cost.input_tokens))),
        min(cost.output_tokens, most.get("output_tokens", cost.output_tokens)),
    )
