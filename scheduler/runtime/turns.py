"""Turns: the engine joined to a clock. Callers wait here, and are woken in the order of their grants."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from operator import attrgetter

from scheduler.core.engine import Engine
from scheduler.core.entry import ENDED, EXPIRED, RUNNING, WAITING, Entry
from scheduler.core.policy import Outlook, Reason
from scheduler.core.quota import NS, Usage
from scheduler.core.signals import News, Signal
from scheduler.errors import DeadlineExceeded, ErrRateLimited, SchedulerClosed, refused
from scheduler.runtime.clock import Clock, Timer
from scheduler.runtime.estimates import Estimates
from scheduler.runtime.grant import Turn

FAR = 1 << 63


class Turns:
    """One timer for all tenants, armed for the earliest time at which anything can happen.

    Only what is granted is woken. `resuming` counts callers that were granted their turn and have yet to
    resume: a newcomer who is granted at once must not run before them, since awaiting a future that is
    already resolved does not suspend.
    """

    listener: Callable[[News], object] | None = None

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self.counts: Counter[str] = Counter()
        self.refusals = dict.fromkeys(Reason, 0)
        self.resuming = 0
        self.closed = True
        self.estimates = Estimates()
        self._now = clock.now
        self._clock = clock
        self._timer: Timer | None = None
        self._armed = FAR

    def open(self) -> None:
        """Start the timer on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._timer = self._clock.timer(self._wake)
        self.closed = False

    def shut(self) -> None:
        """Stop the timer."""
        self.closed = True
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    # --- waiting ------------------------------------------------------------------------------------

    def offer(self, turn: Turn) -> bool:
        """Ask for a turn: True if it is now, False if `turn` must be awaited. Raises on refusal."""
        if self.closed and turn.holder is None:
            raise SchedulerClosed("the scheduler is closed")
        engine = self.engine
        refusal = engine.offer(self._now(), turn.tenant, turn.gate, turn)
        if engine.moved:
            self._tell()
        if engine.news:
            self._publish()
        if turn.state is RUNNING:
            return not self.resuming
        events = engine.events.items
        if events and events[0][0] < self._armed:
            self._arm()
        if refusal is not None:
            self.refusals[refusal.reason] += 1
            raise refused(turn.tenant, refusal)
        return False

    def until(self, turn: Turn, told: bool = True) -> Awaitable[None]:
        """What to await for the turn of a grant that was offered, and then say so: `resumed`, or `gone`.

        `turn` is all of it in one call; most waiters do without its frame, which is much of their size.
        `told` False: if it was granted already, its caller has yet to be told, like those that moved with it.
        """
        if told and turn.state is RUNNING:
            # Granted at once, but others who were granted before have yet to resume: one step of the loop,
            # so that it goes behind them, and whoever is granted after it goes behind it.
            self.resuming += 1
            return asyncio.sleep(0)
        turn.future = self._loop.create_future()
        return turn.future

    def resumed(self, turn: Turn) -> None:
        """The caller has its turn, and goes on; not if its gate was closed in the meantime."""
        turn.future = None
        self.resuming -= 1
        if turn.shared.closed_until is not None:
            try:
                self.ensure_open(turn)
            except ErrRateLimited:
                self.withdraw(turn)
                raise
        if self.closed:
            self.changed()

    def ensure_open(self, turn: Turn) -> None:
        """Raise if the gate was closed since the grant: a spending limit, and this is not its probe."""
        gate = turn.shared
        if gate.closed_until is not None and gate.shut_to(turn):
            self.refusals[Reason.SPEND_LIMIT] += 1
            left = max(1, gate.closed_until - self._now())
            raise ErrRateLimited(turn.tenant, Reason.SPEND_LIMIT, left / NS)

    def gone(self, turn: Turn) -> None:
        """The caller waits no more: cancelled, or told that it waits in vain. What it holds goes back."""
        future, turn.future = turn.future, None
        if future is None or not (future.cancelled() or not future.done() or future.exception()):
            self.resuming -= 1
        self.withdraw(turn)

    async def turn(self, turn: Turn, told: bool = True) -> None:
        """Wait for the turn of a grant that was offered. A cancellation gives back what it holds."""
        try:
            await self.until(turn, told)
        except BaseException:
            self.gone(turn)
            raise
        self.resumed(turn)

    def withdraw(self, turn: Turn) -> None:
        """Take a grant back before its call began, waiting or granted."""
        open_before = turn.state is WAITING or turn.state is RUNNING
        self.engine.withdraw(self._now(), turn)
        if open_before and turn.state is ENDED:
            self.counts["cancelled"] += 1
        self.changed()

    def turn_away(
        self, why: Callable[[Turn], Exception], whom: Callable[[Turn], bool] = lambda _: True
    ) -> None:
        """Have callers wait no more, all or some, in the order of their lines.

        All are told before any of them leaves: whoever the end of another lets go must not run for it.
        """
        waiting = [entry for entry in self.engine.everyone() if isinstance(entry, Turn)]
        leaving = sorted(filter(whom, waiting), key=attrgetter("key"))
        for turn in leaving:
            turn.failed(why(turn))
        for turn in reversed(leaving):
            self.withdraw(turn)

    def settle_grant(self, turn: Turn, usage: Usage | None) -> None:
        """End a turn. A second call does nothing."""
        if turn.state is RUNNING:
            if usage is not None and turn.counted is not None:
                self.estimates.learn(turn.tenant, turn.gate, turn.counted, usage)
            self.engine.settle(self._now(), turn, usage)
            self.changed()

    def hear(self, turn: Turn, signal: Signal) -> None:
        """Take note of how the upstream took a turn's call."""
        if turn.state is RUNNING:
            self.engine.hear(self._now(), turn, signal)
            self.changed()

    def grow(self, turn: Turn, output_tokens: int) -> None:
        """Charge a turn whose output goes beyond its estimate."""
        if output_tokens > turn.cost.output_tokens:
            self.engine.grow(self._now(), turn, output_tokens)
            self.changed()

    def resume(self, gate: str | None = None) -> None:
        """Let calls pass a gate again that is paused or closed, since whoever asks knows that they may.

        `gate`: one by name, or all. Raises ValueError for a name that there is not.
        """
        names = sorted(self.engine.gates) if gate is None else [gate]
        if names[0] not in self.engine.gates:
            raise ValueError(f"gate: must be one of {sorted(self.engine.gates)}, got {gate!r}")
        for name in names:
            self.engine.resume(self._now(), name)
        self.changed()

    def _publish(self) -> None:
        """Let the listener know what happened at the gates. What it raises goes to the loop's handler."""
        news, self.engine.news = self.engine.news, []
        if self.listener is not None:
            for item in news:
                self._loop.call_soon(self.listener, item)

    def changed(self) -> None:
        """Tell whom it concerns after the engine was asked for something, and arm the timer."""
        if self.engine.moved:
            self._tell()
        if self.engine.news:
            self._publish()
        self._arm()

    # --- waking -------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._armed = FAR
        self.engine.advance(self._now())
        self.changed()

    def _arm(self) -> None:
        items = self.engine.events.items
        if items and items[0][0] < self._armed:
            wake = self.engine.wake
            if wake is not None and wake < self._armed and self._timer is not None:
                self._armed = wake
                self._timer.arm(wake)

    def _tell(self) -> None:
        """Wake those whose jobs moved, in the order in which they did."""
        moved, self.engine.moved = self.engine.moved, []
        for entry in moved:
            if not isinstance(entry, Turn):
                continue
            if entry.state is RUNNING:
                if entry.granted():
                    self.resuming += 1
            elif entry.state is EXPIRED:
                self.counts["failed"] += 1
                entry.failed(self._late(entry))
            elif entry.refusal is not None:
                self.refusals[entry.refusal.reason] += 1
                entry.failed(refused(entry.tenant, entry.refusal))

    # --- errors -------------------------------------------------------------------------------------

    def _late(self, turn: Turn) -> DeadlineExceeded:
        bound = 0 if turn.expires is None else turn.expires - turn.arrival
        return DeadlineExceeded(turn.tenant, "timeout", bound / NS)

    def outlook(self, entry: Entry) -> Outlook:
        """What a job can look forward to now, or where it started."""
        outlook = self.engine.expected(self._now(), entry)
        self.changed()
        return outlook
