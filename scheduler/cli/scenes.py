"""What the scenes of the demo have in common: prompts sent, starts measured, events told."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from agent import Agent, Reply
from scheduler import ErrRateLimited, Job, Policy, Quota, Rate, Scheduler
from scheduler.core.quota import NS
from scheduler.runtime.clock import MonotonicClock


@dataclass(slots=True)
class Prompt:
    """One prompt of a scene and what became of it. Times in seconds from when it was sent."""

    scene: str
    tenant: str
    number: int
    text: str
    promised: float | None = None
    started: float | None = None
    answered: float | None = None
    refused: float | None = None
    failed: str | None = None
    reply: str | None = None
    order: int | None = None

    @property
    def state(self) -> str:
        """Where it is."""
        if self.refused is not None:
            return "refused"
        if self.failed is not None:
            return f"FAILED: {self.failed}"
        if self.answered is not None:
            return "answered"
        return "waiting" if self.started is None else "running"

    @property
    def error(self) -> float | None:
        """Measured start less promised start, where one was promised."""
        if self.started is None or not self.promised:
            return None
        return self.started - self.promised


class BareTimer:
    """A timer of the kind that the scheduler uses, set for the same instants on the same loop, and no more.

    What it is late, the best scheduler would be late too: the measure for the promises of this run.
    """

    def __init__(self, clock: MonotonicClock) -> None:
        self._clock = clock
        self._due: list[int] = []
        self._timer = clock.timer(self._ring)
        self.late: list[float] = []

    def watch(self, due: int) -> None:
        """Ring at `due`, in nanoseconds of the clock."""
        heappush(self._due, due)
        self._timer.arm(self._due[0])

    def _ring(self) -> None:
        now = self._clock.now()
        while self._due and self._due[0] <= now:
            self.late.append((now - heappop(self._due)) / NS)
        if self._due:
            self._timer.arm(self._due[0])

    def stop(self) -> None:
        """Ring no more."""
        self._timer.close()


@dataclass(slots=True)
class Stage:
    """Where a demo plays: the agent that answers, the clock that measures, everything sent so far."""

    agent: Agent
    as_json: bool
    clock: MonotonicClock
    bare: BareTimer
    prompts: list[Prompt] = field(default_factory=list)
    starts: int = 0
    sent: dict[str, tuple[Prompt, int]] = field(default_factory=dict)

    def tell(self, event: str, prompt: Prompt, **more: Any) -> None:
        """Print an event, if events were asked for."""
        if self.as_json:
            facts = {"scene": prompt.scene, "event": event, "tenant": prompt.tenant, "prompt": prompt.number}
            print(json.dumps({**facts, **more}), flush=True)

    def scheduler(self, rate: int, burst: int, policy: Policy | None = None, **quotas: Quota) -> Scheduler:
        """A scheduler in front of the agent: one quota for everyone, or one for each tenant."""
        one = Quota(Rate(rate, burst=burst))
        return Scheduler(
            self._handle,
            quotas=lambda tenant: quotas.get(tenant, one),
            policy=policy or Policy(),
            clock=self.clock,
        )

    async def send(self, scheduler: Scheduler, scene: str, tenant: str, texts: list[str]) -> list[Prompt]:
        """Send prompts at one instant, and return when all are answered or refused."""
        prompts = [Prompt(scene, tenant, number, text) for number, text in enumerate(texts, 1)]
        self.prompts += prompts
        async with asyncio.TaskGroup() as group:
            for prompt in prompts:
                group.create_task(self._see_through(scheduler, prompt))
        return prompts

    async def _see_through(self, scheduler: Scheduler, prompt: Prompt) -> None:
        at = self.clock.now()
        try:
            ticket = await scheduler.enqueue(prompt.tenant, prompt.text)
        except ErrRateLimited as refusal:
            prompt.refused = refusal.retry_after
            self.tell("refused", prompt, retry_after_s=refusal.retry_after)
            return
        self.sent[ticket.id] = prompt, at
        prompt.promised = ticket.wait
        if ticket.wait:
            self.bare.watch(at + round(ticket.wait * NS))
        self.tell("accepted", prompt, position=ticket.position, promised_s=ticket.wait)
        try:
            reply: Reply = await ticket.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other prompts are shown
            prompt.failed = str(getattr(error, "kind", "") or type(error).__name__)
            self.tell("failed", prompt, error=prompt.failed)
            return
        prompt.reply, prompt.answered = reply.text, (self.clock.now() - at) / NS
        self.tell("answered", prompt, promised_s=prompt.promised, waited_s=prompt.started)

    async def _handle(self, job: Job) -> Reply:
        """Measure when a prompt really starts, and send it."""
        prompt, at = self.sent[job.id]
        prompt.started = (self.clock.now() - at) / NS
        self.starts += 1
        prompt.order = self.starts
        return await self.agent.handle(job)

    def in_order(self) -> bool:
        """Whether every tenant's prompts started in the order in which they were sent, and were answered."""
        lines: dict[tuple[str, str], list[Prompt]] = {}
        for prompt in self.prompts:
            if prompt.refused is None:
                lines.setdefault((prompt.scene, prompt.tenant), []).append(prompt)
        return all(
            prompt.reply is not None and (index == 0 or (line[index - 1].order or 0) < (prompt.order or 0))
            for line in lines.values()
            for index, prompt in enumerate(line)
        )

    def errors(self) -> list[float]:
        """How far every promised start was missed, in seconds."""
        return [abs(prompt.error) for prompt in self.prompts if prompt.error is not None]


def greetings(count: int) -> list[str]:
    """The prompts of the example that everyone knows."""
    return ["Say hi" if number == 1 else f"Say hi {number}" for number in range(1, count + 1)]
