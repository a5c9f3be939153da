"""Standing in: while the store is down, callers get a share of their limits from an engine of this process.

What they use is put on a tab for each tenant, and on one for each gate. When the store is back the tabs are
written to it, once: their costs as if they had been charged at their slots, and a row for whoever still runs.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler.core.account import Account, shape_of
from scheduler.core.engine import Engine
from scheduler.core.entry import RUNNING
from scheduler.core.learning import within
from scheduler.core.owing import Owed
from scheduler.core.policy import Outlook
from scheduler.core.quota import Cost, Quota, Usage
from scheduler.core.signals import Signal
from scheduler.errors import SchedulerClosed
from scheduler.runtime.clock import Clock
from scheduler.runtime.grant import Turn
from scheduler.runtime.outage import Outage
from scheduler.runtime.standing_gates import StandingGates
from scheduler.runtime.turns import Turns
from scheduler.runtime.watch import LONGEST_PAUSE
from scheduler.stores.protocol import Store
from scheduler.stores.values import Debt, Held, Request, Unpriced

BATCH = 200
"""Tenants whose tabs are written in one transaction."""


class Back(Exception):
    """The store is back before it was the caller's turn here."""


class Shadow(Turn):
    """What stands in this process's lines for a caller of the store.

    `number`: of its row, once the store has one. `over`: it has ended before it had.
    """

    number = 0
    over = False


@dataclass(eq=False)
class Tab:
    """What a tenant used without the store, and who of it still runs."""

    owed: Owed
    held: dict[Shadow, None] = field(default_factory=dict)


class StandingIn(Turns):
    """Grants by shares of quotas and gates, as the store had them when this process last saw them.

    Its buckets stay from one outage to the next: a store that comes and goes fills nobody's. `quota_of`: of a
    tenant that was never seen. `slots`: the most that run at once.
    """

    def __init__(
        self, clock: Clock, store: Store, outage: Outage, quota_of: Callable[[str], Quota], slots: int
    ) -> None:
        super().__init__(Engine(clock.now(), self._share_of, {"": Quota()}, slots), clock)
        self.admitted = 0
        self.is_needed = False
        self._store = store
        self._outage = outage
        self._quota_of = quota_of
        self._name = secrets.token_hex(8)
        self._debts: list[tuple[Debt, dict[str, Shadow]]] = []
        self._tabs: dict[str, Tab] = {}
        self.gates = StandingGates(self.engine, store, outage)
        self._unwritten: Counter[str] = Counter()
        self._number = 0
        self._round = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        """Be ready; what is owed is written in tasks of this group."""
        self._group = group
        self.open()

    def stop(self) -> None:
        """Grant nobody any more, and write down what is owed."""
        self.gates.tell()
        self.turn_away(lambda _: SchedulerClosed("the scheduler was closed while the call waited"))
        self.write()
        self.shut()

    # --- quotas -------------------------------------------------------------------------------------

    def whole_quota(self, tenant: str) -> Quota:
        """All that a tenant may use, as far as is known here."""
        return self._store.last_quota(tenant) or self._quota_of(tenant)

    def _share_of(self, tenant: str) -> Quota:
        return self._outage.quota(self.whole_quota(tenant))

    def _keep_up(self, tenant: str) -> None:
        """Let a quota count that was changed since the tenant was seen here; its levels stay."""
        known = self.engine.tenants.get(tenant)
        if known is not None and known.shape.quota != (quota := self._share_of(tenant)):
            self.engine.set_quota(self._now(), tenant, quota)
            known.override = False  # it is the store's, and so no reason to remember the tenant
            self.changed()

    # --- the store is down --------------------------------------------------------------------------

    def step_in(self) -> None:
        """From now on callers are granted here, through shares of the gates that the store has."""
        self.is_needed = True
        self.gates.take_over(self._now(), self.ahead())
        self.changed()

    def heard(self, turn: Turn, shadow: Shadow | None, signal: Signal) -> None:
        """Have a gate follow what an upstream said to the call of a caller, whoever has granted that."""
        self.gates.hear(turn, shadow, signal, self._now(), self.ahead())
        self.changed()

    # --- callers ------------------------------------------------------------------------------------

    def shadow(self, request: Request, run: Shadow | None, cost: Cost | None = None) -> Shadow:
        """What stands here for a request; it goes in the slot of its `run`, if that has one here.

        `cost`: what the store has found out that it is charged.
        """
        gate, charged = request.gate or "", cost or request.cost
        shadow = Shadow(self, request.tenant, gate, request.policy, charged)  # type: ignore[arg-type]
        if cost is None and request.unpriced is not None:
            self._estimate(shadow, request.unpriced)
        if run is not None and run.state is RUNNING:
            shadow.holder, shadow.plain = run, False
        if request.head_start:
            shadow.head_start, shadow.plain = request.head_start, False
        if request.timeout is not None:
            shadow.expires, shadow.plain = self._now() + request.timeout, False
        return shadow

    def _estimate(self, shadow: Shadow, unpriced: Unpriced) -> None:
        """Charge an estimate, by what this process alone has learned in outages."""
        shape, gate = shape_of(self._share_of(shadow.tenant)), self.engine.gates[shadow.gate].shape
        if unpriced.counted is not None and (shape.metered or gate.metered):
            cost = self.estimates.estimate(shadow.tenant, shadow.gate, unpriced.counted)
            shadow.cost = within(cost, unpriced.counted, shape, gate)
            shadow.counted, shadow.plain = unpriced.counted, False

    async def stand(self, shadow: Shadow) -> None:
        """Wait for a turn here. Raises `Back` when the store is back first, and by policy."""
        self._keep_up(shadow.tenant)
        if not self.offer(shadow):
            await self.turn(shadow)
        tab = self._tabs.get(shadow.tenant)
        if tab is None:
            owed = Owed(shape_of(self.whole_quota(shadow.tenant)))
            tab = self._tabs[shadow.tenant] = Tab(owed)
        for owed in (tab.owed, *self.gates.owed(shadow.gate)):
            owed.charge(shadow.slot + self.ahead(), shadow.cost)
        tab.held[shadow] = None
        self.admitted += 1
        if not self.is_needed:  # the store came back between the grant and now
            self.write()

    def ahead(self) -> int:
        """Nanoseconds by which the store's clock is ahead of the one here."""
        return self._store.about() - self._now()

    def end(self, shadow: Shadow, usage: Usage | None) -> None:
        """A caller has its turn no more: that of a waiting one goes, and what was used counts of a block."""
        if shadow.state is not RUNNING:
            self.withdraw(shadow)
            return
        self.settle_grant(shadow, usage)
        tab = self._tabs.get(shadow.tenant)
        if tab is not None and shadow in tab.held:
            del tab.held[shadow]
            if usage is not None:
                for owed in (tab.owed, *self.gates.owed(shadow.gate)):
                    owed.correct(shadow.cost, usage)
        elif shadow.number:
            self._store.home.settle(shadow.number, shadow.tenant, usage)
        else:
            shadow.over, shadow.usage = True, usage

    def grow(self, turn: Turn, output_tokens: int) -> None:
        """See `Turns.grow`; what the store knows of already is charged by that at its end."""
        before, tab = turn.cost, self._tabs.get(turn.tenant)
        super().grow(turn, output_tokens)
        if tab is not None and turn in tab.held and turn.cost is not before:
            usage = Usage(before.requests, before.input_tokens, output_tokens)
            for owed in (tab.owed, *self.gates.owed(turn.gate)):
                owed.correct(before, usage)

    def account(self, request: Request) -> tuple[Account, int]:
        """The buckets here of a request's tenant, and the time."""
        tenant, now = request.tenant, self._now()
        self.engine.advance(now)
        self.changed()
        known = self.engine.tenants.get(tenant)
        return known or Account(shape_of(self._share_of(tenant)), now), now

    def quote(self, request: Request) -> tuple[Outlook, int]:
        """What a call could look forward to here, and the time."""
        now = self._now()
        self._keep_up(request.tenant)
        found = self.engine.quote(now, request.tenant, request.gate or "", self.shadow(request, None))
        self.changed()
        return found, now

    # --- the store is back --------------------------------------------------------------------------

    def dismiss(self) -> None:
        """Send all who wait to the store, in the order of their lines, and write down what is owed."""
        self.is_needed = False
        self.gates.tell()
        self.turn_away(lambda _: Back())
        self.write()

    @property
    def unrecorded(self) -> int:
        """Grants that the store may not know of, as requests."""
        owed = [debt.owed for debt, _ in self._debts] + [tab.owed for tab in self._tabs.values()]
        return sum(each.used.requests for each in owed)

    def write(self) -> None:
        """Have what is owed so far written to the store, as soon as that can be reached."""
        for tenant, tab in self._tabs.items():
            self._number += 1
            key = f"outage {self._name} {self._number}"
            shadows = {f"{key} {number}": shadow for number, shadow in enumerate(tab.held, 1)}
            ahead = self.ahead()
            held = [
                Held(name, shadow.cost, shadow.arrival + ahead, shadow.slot + ahead, shadow.gate)
                for name, shadow in shadows.items()
            ]
            debt = Debt(key, tenant, tab.owed.shape.quota, tab.owed, held, self.gates.owed_by_all())
            self._debts.append((debt, shadows))
            self._unwritten[tenant] += 1
        self._tabs.clear()
        if self._debts and self._group is not None and (self._task is None or self._task.done()):
            self._task = self._group.create_task(self._write())

    async def _write(self) -> None:
        while self._debts:
            # One of a tenant at a time: they are charged in the order in which they came.
            some: dict[str, tuple[Debt, dict[str, Shadow]]] = {}
            for debt, shadows in self._debts[:BATCH]:
                some.setdefault(debt.tenant, (debt, shadows))
            try:
                numbers = await self._store.home.record([debt for debt, _ in some.values()])
            except self._store.lost:
                await asyncio.sleep(LONGEST_PAUSE / 4)
                continue
            written = {debt.key for debt, _ in some.values()}
            self._debts = [each for each in self._debts if each[0].key not in written]
            self._unwritten -= Counter(list(some))
            for _, shadows in some.values():
                for key, shadow in shadows.items():
                    self._known(shadow, numbers[key])
            self._round.set()
            self._round = asyncio.Event()

    def _known(self, shadow: Shadow, number: int) -> None:
        """The store has a row for a caller now, which is ended like any other's."""
        shadow.number = number
        if shadow.over:
            self._store.home.settle(number, shadow.tenant, shadow.usage)

    async def recorded(self, tenant: str | None) -> None:
        """Return when the store knows what a tenant, or anybody, was granted here until it was back.

        And what upstreams said: whoever asks the store next must not pass a gate that is known to be shut.
        """
        while self._unwritten if tenant is None else tenant in self._unwritten:
            await self._round.wait()
        await self.gates.told()
