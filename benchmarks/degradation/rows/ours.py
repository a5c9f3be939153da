"""waitline, through its public names: a line for each tenant behind one gate with the account's limits."""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar, Self

from benchmarks.degradation.account import Account
from benchmarks.degradation.journal import Journal
from benchmarks.degradation.rows.base import Guess, Refusal, Row, Setting, TooLate
from benchmarks.degradation.trace import Prompt
from scheduler import (
    Cost,
    DeadlineExceeded,
    ErrRateLimited,
    Job,
    JobFailed,
    Policy,
    Quota,
    QuotaExceeded,
    Rate,
    Scheduler,
    UpstreamError,
    Usage,
)
from scheduler.upstreams.failures import outcome

REFUSED = Usage(1, 0, 0)
"""What the SDK adapter says a call has used that the upstream did not let in."""


class Waitline(Row):
    """Every prompt waits its turn. No tenant has a quota of its own: the gate alone shares the account."""

    name: ClassVar[str] = "waitline"
    bursts: ClassVar[tuple[float, float, float]] = (1, 1, 1)
    """The part of each of the account's bursts that the gate has: all, as if estimates were exact."""
    margin: ClassVar[float] = 1.0
    """How many times their mean answers are expected to be: the mean, as if a sum were all that counts."""
    bounded: ClassVar[bool] = False
    """Whether the scheduler is told the deadline, and so refuses at once what cannot meet it."""

    def __init__(self, setting: Setting, account: Account, journal: Journal) -> None:
        super().__init__(setting, account, journal)
        self._guess = Guess(margin=self.margin)
        self._prompts: dict[str, Prompt] = {}
        self.scheduler = Scheduler(self._handle, gates=self.gate(), policy=self.policy(), clock=setting.clock)

    def gate(self) -> Quota:
        """The account's limits, with as much of its bursts as this row makes use of."""
        offer = self.setting.offer
        requests, input_tokens, output_tokens = (
            Rate.per_minute(limit, burst=max(1, round(offer.burst(dimension) * part)))
            for dimension, (limit, part) in enumerate(zip(offer.per_minute, self.bursts, strict=True))
        )
        return Quota(requests, input_tokens=input_tokens, output_tokens=output_tokens)

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
        """Submit it at its expected cost, and note when it is expected to start."""
        expected = self._guess.of(prompt.tenant)
        fate = self.journal.fates[prompt.number]
        fate.estimate = expected
        self._prompts[str(prompt.number)] = prompt
        cost = Cost(1, prompt.guessed_input, expected)
        timeout = self.setting.deadline_s if self.bounded else None
        try:
            fate.promised = (await self.scheduler.quote(prompt.tenant, cost=cost)).expected
            await self.scheduler.submit(prompt.tenant, str(prompt.number), cost=cost, timeout=timeout)
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
        try:
            used = await self.account_of(job).call(prompt)
        except UpstreamError as error:
            job.settle(REFUSED)
            retry = outcome(error, job.tries, self.draw)
            if retry is None:
                raise
            raise retry from error
        job.settle(used)
        self._guess.learn(prompt.tenant, used.output_tokens)


class WaitlineWithReserve(Waitline):
    """The same with something kept back for what estimates and late charges miss.

    The gate has half of the account's token bursts, and answers are expected to be half as long again as
    their mean. Its rates are the account's and unused permits come back: nothing is lost in the long run.
    """

    name: ClassVar[str] = "waitline, reserve"
    bursts: ClassVar[tuple[float, float, float]] = (1, 0.5, 0.5)
    margin: ClassVar[float] = 1.5


class WaitlineWithDeadlines(WaitlineWithReserve):
    """With the reserve, and told each prompt's deadline: what cannot start before it is refused at once."""

    name: ClassVar[str] = "waitline, reserve, timeout"
    bounded: ClassVar[bool] = True
