"""waitline, through its public names: a line for each tenant behind one gate with the account's limits."""

from __future__ import annotations

from types import TracebackType
from typing import Any, ClassVar, Self

from benchmarks.degradation.account import Account
from benchmarks.degradation.journal import Journal
from benchmarks.degradation.rows.base import Refusal, Row, Setting, TooLate
from benchmarks.degradation.trace import Prompt
from scheduler import (
    DeadlineExceeded,
    ErrRateLimited,
    Estimates,
    Job,
    JobFailed,
    Policy,
    Quota,
    QuotaExceeded,
    Rate,
    Rung,
    Scheduler,
    UpstreamError,
    Usage,
)
from scheduler.upstreams.failures import outcome

REFUSED = Usage(1, 0, 0)
"""What the SDK adapter says a call has used that the upstream did not let in."""

LARGE, SMALL = "large", "small"
"""Two model classes, each with limits of its own."""


class Waitline(Row):
    """Every prompt waits its turn. No tenant has a quota of its own: the gate alone shares the account."""

    name: ClassVar[str] = "waitline"
    bursts: ClassVar[tuple[float, float, float]] = (1, 1, 1)
    """The part of each of the account's bursts that the gate has."""
    bounded: ClassVar[bool] = False
    """Whether the scheduler is told the deadline, and so refuses at once what cannot meet it."""

    def __init__(self, setting: Setting, account: Account, journal: Journal) -> None:
        super().__init__(setting, account, journal)
        self._prompts: dict[str, Prompt] = {}
        self.scheduler = Scheduler(
            self._handle,
            gates=self.gates(),
            policy=self.policy(),
            estimates=Estimates(self._count),
            clock=setting.clock,
        )

    def _count(self, prompt: Any) -> int:
        """What a client counts before the call; all that it knows of a prompt here is its number."""
        return self._prompts[prompt].guessed_input

    def gates(self) -> dict[str, Quota]:
        """The account's limits, with as much of its bursts as this row makes use of."""
        offer = self.setting.offer
        requests, input_tokens, output_tokens = (
            Rate.per_minute(limit, burst=max(1, round(offer.burst(dimension) * part)))
            for dimension, (limit, part) in enumerate(zip(offer.per_minute, self.bursts, strict=True))
        )
        return {LARGE: Quota(requests, input_tokens=input_tokens, output_tokens=output_tokens)}

    def policy(self) -> Policy:
        """The default: ten minutes, a thousand jobs in a line."""
        return Policy()

    async def __aenter__(self) -> Self:
        await self.scheduler.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.scheduler.__aexit__(kind, error, trace)

    async def serve(self, prompt: Prompt) -> None:
        """Submit it, and note when it is expected to start."""
        key = str(prompt.number)
        self._prompts[key] = prompt
        timeout = self.setting.deadline_s if self.bounded else None
        fate = self.journal.fates[prompt.number]
        try:
            fate.promised = (await self.scheduler.quote(prompt.tenant, gate=LARGE)).expected
            await self.scheduler.submit(prompt.tenant, key, timeout=timeout, gate=LARGE)
        except DeadlineExceeded:
            raise TooLate from None
        except (ErrRateLimited, JobFailed, QuotaExceeded):
            raise Refusal from None

    def account_of(self, job: Job) -> Account:
        """Who answers a job: there is one account."""
        return self.account

    async def _handle(self, job: Job) -> None:
        """Do what ``Agent.handle`` does with an attempt: say what it used, and what its failure means."""
        prompt = self._prompts[str(job.prompt)]
        self.journal.fates[prompt.number].estimate = job.cost.output_tokens
        try:
            used = await self.account_of(job).call(prompt, job, job.max_tokens)
        except UpstreamError as error:
            job.settle(REFUSED)
            retry = outcome(error, job.tries, self.draw)
            if retry is None:
                raise
            raise retry from error
        job.settle(used)


class WaitlineWithReserve(Waitline):
    """The same with half of the account's token bursts left to it, for what the gate cannot know in time.

    The gate's rates are the account's: nothing is lost in the long run.
    """

    name: ClassVar[str] = "waitline, reserve"
    bursts: ClassVar[tuple[float, float, float]] = (1, 0.5, 0.5)


class WaitlineWithDeadlines(WaitlineWithReserve):
    """With the reserve, and told each prompt's deadline: what cannot start before it is refused at once."""

    name: ClassVar[str] = "waitline, reserve, timeout"
    bounded: ClassVar[bool] = True


class WaitlineWithLadder(WaitlineWithDeadlines):
    """With steps: after ten seconds a smaller model class, after twenty a shorter answer, then a refusal.

    The smaller model has an account like the first one's, as the published tiers have it.
    """

    name: ClassVar[str] = "waitline, ladder"
    rungs: ClassVar[tuple[Rung, ...]] = (Rung(10, gate=SMALL), Rung(20, max_tokens=256))

    def __init__(self, setting: Setting, account: Account, journal: Journal) -> None:
        super().__init__(setting, account, journal)
        self._small = Account(setting.offer, setting.now, journal, aside=True)

    def gates(self) -> dict[str, Quota]:
        """One each."""
        (quota,) = super().gates().values()
        return {LARGE: quota, SMALL: quota}

    def policy(self) -> Policy:
        """The default with its rungs."""
        return Policy(ladder=self.rungs)

    def account_of(self, job: Job) -> Account:
        """The account of the model class that the job's rung has chosen."""
        return self._small if job.gate == SMALL else self.account
