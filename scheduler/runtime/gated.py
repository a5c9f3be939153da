"""The gates of a scheduler over a store: declared there, and the same for all processes."""

from __future__ import annotations

import asyncio

from scheduler.core.policy import Policy
from scheduler.core.signals import News, Upstream
from scheduler.runtime.watching import Watching

UNNAMED = "default"
"""The name in the store of a gate that was given none, since it is the only one."""


class Gated(Watching):
    """Knows the gates that are in its store."""

    _declared: dict[str, Upstream]

    def _begin_gates(self, given: bool) -> None:
        gates = self.engine.gates if given else {}
        self._declared = {name or UNNAMED: gate.upstream for name, gate in gates.items()}

    async def _declare(self) -> None:
        """Have what this scheduler declares in the store, as it says, and listen for the news of gates."""
        if self._declared or self.engine.overload is not None:
            await self.store.hearing.declare(self._declared, self.engine.overload)
        self.store.hearing.on_news.add(self._hear_news)

    def _listen_no_more(self) -> None:
        self.store.hearing.on_news.discard(self._hear_news)

    def _hear_news(self, news: News) -> None:
        if self.listener is not None:
            asyncio.get_running_loop().call_soon(self.listener, news)

    def _gate_for(self, gate: str | None) -> str | None:
        """The gate that is meant, of those that are in the store; None where there is none."""
        known = self.store.hearing.gates or self._declared
        if gate is None and len(self._declared) == 1:
            return next(iter(self._declared))
        if (gate is None and len(known) < 2) or not (gate or known):
            return next(iter(known), None)
        if (gate or UNNAMED) not in known:
            raise ValueError(f"gate: must be one of {sorted(known)}, got {gate!r}")
        return gate or UNNAMED

    def _with_ladder(self, policy: Policy) -> Policy:
        """A policy whose ladder leads to gates that there are, and to somebody who takes deferred jobs."""
        known = self.store.hearing.gates or self._declared
        if not known:
            raise ValueError("policy: a ladder over a store needs gates; gates=Quota() has no limits")
        for rung in policy.ladder:
            name = rung.gate or (None if UNNAMED in known else rung.model)
            if name is not None and name not in known:
                raise ValueError(f"ladder: there is no gate {name!r} for {rung!r}, only {sorted(known)}")
            if rung.defer is not None and not self.engine.max_deferred:
                raise ValueError(f"ladder: {rung!r} needs deferred=, as workers have it that take such jobs")
        return policy

    def resume(self, gate: str | None = None) -> None:
        """See `Scheduler.resume`: for all processes, as soon as the store can be reached.

        While it is down, for this process at once.
        """
        name = None if gate is None else self._gate_for(gate) or UNNAMED
        self.store.hearing.resume_soon(None if name is None else [name])
        if self.standing_in is not None and self.standing_in.is_needed:
            self.standing_in.resume(name)
