"""The gates of a stand-in: shares of the store's, as this process knew them when the store went down."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter

from scheduler.core.account import shape_of
from scheduler.core.engine import Engine
from scheduler.core.entry import Entry
from scheduler.core.following import NEVER
from scheduler.core.gate import Gate
from scheduler.core.limits import limits_of
from scheduler.core.owing import Owed
from scheduler.core.signals import Answer, Signal
from scheduler.runtime.grant import Turn
from scheduler.runtime.outage import Outage
from scheduler.stores.protocol import Store
from scheduler.stores.values import Heard

KEPT = 250
"""Of each kind of answer at a gate, how many that were heard in an outage are told to the store: the last.

The later ones say most: limits, what is left of them, until when to wait.
"""


class StandingGates:
    """The gates of an `engine`, while it stands in for a store.

    What passes them is owed to the store's. What their upstreams say counts here at once, and is told to the
    store when that is back.
    """

    def __init__(self, engine: Engine, store: Store, outage: Outage) -> None:
        self._engine = engine
        self._store = store
        self._outage = outage
        self._owed: dict[str, Owed] = {}
        self._heard: dict[tuple[str, Answer], deque[Heard]] = {}
        self._opened: set[str] = set()
        self._telling = False

    def take_over(self, now: int, ahead: int) -> None:
        """Have shares of all gates of the store, as this process knows them.

        `ahead`: nanoseconds by which the store's clock is ahead of the one here.
        """
        self._engine.advance(now)
        share(self._engine.gates, self._store.hearing.gates, self._outage, now, ahead)

    # --- what is owed -------------------------------------------------------------------------------

    def owed(self, gate: str) -> Sequence[Owed]:
        """What a grant is charged to that passes a gate, if that is one of the store's."""
        known = self._store.hearing.gates.get(gate)
        if known is not None and gate not in self._owed:
            self._owed[gate] = Owed(known.shape)
        return [self._owed[gate]] if gate in self._owed else []

    def owed_by_all(self) -> Mapping[str, Owed]:
        """All that is owed to gates, once: by all tenants together, in the order of their grants."""
        owed, self._owed = self._owed, {}
        return owed

    # --- what is heard ------------------------------------------------------------------------------

    def hear(self, turn: Turn, shadow: Turn | None, signal: Signal, now: int, ahead: int) -> None:
        """Have a gate follow what was said to a call. `shadow`: what stands for one that was granted here."""
        self._heard.setdefault((turn.gate, signal.answer), deque(maxlen=KEPT)).append(
            Heard(turn.gate, turn.sequence, turn.tenant, turn.cost, turn.slot, signal, self._store.about())
        )
        gate = self._engine.gates.get(turn.gate)
        if gate is None:  # it was declared since this process looked
            return
        call: Entry = shadow or Entry(turn.policy, turn.cost)
        if shadow is None:
            call.shared, call.slot = gate, turn.slot - ahead
        closed = gate.closed_until is not None
        self._engine.hear(now, call, self._outage.signal(signal))
        if closed and gate.closed_until is None:  # a probe was accepted of which the store does not know
            self._opened.add(turn.gate)

    def tell(self) -> None:
        """The store is back: let it know what was heard."""
        for one in sorted(chain.from_iterable(self._heard.values()), key=attrgetter("at")):
            self._store.hearing.hear(one)
        self._heard.clear()
        if self._opened:
            self._store.hearing.resume_soon(sorted(self._opened))
            self._opened.clear()
        self._telling = True

    async def told(self) -> None:
        """Return when the store knows all that it was told."""
        if self._telling:
            await self._store.hearing.noted()
            self._telling = False


def share(gates: dict[str, Gate], known: Mapping[str, Gate], outage: Outage, now: int, ahead: int) -> None:
    """Make gates shares of those that are known: of their limits, and of what they learned of upstreams.

    Nobody waits here. Levels stay from one outage to the next, and are no higher than the store's.
    """
    for name, gate in known.items():
        upstream = outage.upstream(gate.upstream)
        here = gates.get(name)
        if here is None:
            here = gates[name] = Gate(name, upstream, now)
        here.upstream, here.told = upstream, outage.permits(gate.told)
        here.ramp, here.ramped_at = gate.ramp, gate.ramped_at - ahead
        here.reshape(shape_of(limits_of(here)), now)
        here.backlog = [0] * len(here.zeros)
        here.hold = gate.hold
        _lower(here, gate, now, ahead)
        _cut(here, gate, outage, ahead)
        _stop(here, gate, now, ahead)


def _lower(here: Gate, gate: Gate, now: int, ahead: int) -> None:
    """Lower buckets to where the store's stood: as empty, or in as much debt, as a part of what is full."""
    pairs = zip(here.shape.scales, gate.shape.scales, gate.zeros, strict=True)
    for index, (scale, whole, zero) in enumerate(pairs):
        level = scale.capacity * whole.level(zero, now + ahead) // whole.capacity
        here.zeros[index] = max(here.zeros[index], scale.p * now - level)


def _cut(here: Gate, gate: Gate, outage: Outage, ahead: int) -> None:
    """Withhold as large a part of the slots as the store does."""
    slots = min(here.shape.concurrency, outage.slots(gate.slots)) if gate.cut else here.shape.concurrency
    here.free += slots - here.slots
    here.cut = here.shape.concurrency - slots
    here.cut_at, here.cut_from, here.failures = (
        gate.cut_at - ahead,
        outage.slots(gate.cut_from),
        gate.failures,
    )


def _stop(here: Gate, gate: Gate, now: int, ahead: int) -> None:
    """Let nobody pass before the store's gate would."""
    here.probe = None
    if gate.closed_until is None:
        here.closed_until, here.paused_until = None, max(now, gate.paused_until - ahead)
    else:
        here.closed_until, here.paused_until = gate.closed_until - ahead, NEVER
