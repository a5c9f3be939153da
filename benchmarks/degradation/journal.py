"""What happened to each prompt of one row, and when: nanoseconds from the start of the trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.degradation.trace import Prompt


class Outcome(StrEnum):
    """How a prompt ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """By the application itself, before or instead of a call."""
    FAILED = "failed"
    """By the upstream, after as many tries as the row makes."""
    LATE = "late"
    """Its time was up while it waited or ran."""


@dataclass(slots=True)
class Fate:
    """One prompt: its moments, its calls, and what it was charged when it was let through."""

    prompt: Prompt
    submitted: int
    begun: int | None = None
    """The start of its last call that was let in."""
    ended: int | None = None
    outcome: Outcome | None = None
    calls: int = 0
    admitted: int = 0
    estimate: int | None = None
    """Output tokens that the row expected of it, if it did."""
    promised: float | None = None
    """Seconds until its start that its caller was told to expect, if it was told."""

    @property
    def wait(self) -> int | None:
        """Nanoseconds until the call that answered it began."""
        return None if self.begun is None else self.begun - self.submitted

    @property
    def total(self) -> int | None:
        """Nanoseconds from submit to reply."""
        return None if self.ended is None else self.ended - self.submitted


@dataclass(frozen=True, slots=True)
class Refused:
    """One call that the upstream did not let in. `limit` names the bucket of a 429."""

    at: int
    tenant: str
    status: int
    limit: str | None


class Journal:
    """Written by the player and the account; read when all is over."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self.fates: dict[int, Fate] = {}
        self.refusals: list[Refused] = []
        self.admissions: list[tuple[int, Prompt]] = []
        self.aside: list[tuple[int, Prompt]] = []
        self.waits: list[tuple[int, int]] = []
        """When at least one prompt waited: was asked for, and was neither over nor in a call."""
        self._waiting: set[int] = set()
        self._since = 0

    def submitted(self, prompt: Prompt) -> None:
        """A caller asks. RuntimeError if it has asked before."""
        if prompt.number in self.fates:
            raise RuntimeError(f"prompt {prompt.number} was submitted twice")
        self.fates[prompt.number] = Fate(prompt, self._now())
        self._wait(prompt)

    def begun(self, prompt: Prompt, aside: bool = False) -> None:
        """The upstream lets a call in; `aside`: of another model class, whose limits are its own."""
        fate = self.fates[prompt.number]
        fate.begun = self._now()
        fate.calls += 1
        fate.admitted += 1
        (self.aside if aside else self.admissions).append((fate.begun, prompt))
        self._go_on(prompt)

    def refused(self, prompt: Prompt, status: int, limit: str | None = None) -> None:
        """The upstream refuses a call."""
        self.fates[prompt.number].calls += 1
        self.refusals.append(Refused(self._now(), prompt.tenant, status, limit))

    def ended(self, prompt: Prompt, outcome: Outcome) -> None:
        """The caller has its answer, or an error. RuntimeError if it had one before."""
        fate = self.fates[prompt.number]
        if fate.outcome is not None:
            raise RuntimeError(f"prompt {prompt.number} ended twice: {fate.outcome}, then {outcome}")
        fate.outcome, fate.ended = outcome, self._now()
        self._go_on(prompt)

    def _wait(self, prompt: Prompt) -> None:
        if not self._waiting:
            self._since = self._now()
        self._waiting.add(prompt.number)

    def _go_on(self, prompt: Prompt) -> None:
        if prompt.number not in self._waiting:
            return
        self._waiting.discard(prompt.number)
        if not self._waiting and self._now() > self._since:
            self.waits.append((self._since, self._now()))

    def having(self, outcome: Outcome) -> Sequence[Fate]:
        """Everybody who ended so."""
        return [fate for fate in self.fates.values() if fate.outcome is outcome]
