"""waitline with steps of degradation: a row for later, and so not in `ROWS`.

A `Policy` cannot declare a ladder yet. Once it can, a subclass says in `policy` which rungs there are, and
goes into `ROWS`; what is here already is that a job is answered by the account that its gate stands for,
since a rung may send it to another model class, whose limits are its own.
"""

from __future__ import annotations

from abc import abstractmethod

from benchmarks.degradation.account import Account
from benchmarks.degradation.rows.ours import Waitline
from scheduler import Job, Policy


class Laddered(Waitline):
    """A line for each tenant, and declared steps for what cannot be answered in time."""

    accounts: dict[str, Account]
    """By the name of the gate in front of it."""

    @abstractmethod
    def policy(self) -> Policy:
        """The policy with its rungs."""

    def account_of(self, job: Job) -> Account:
        """The account of the model class that the job's rung has chosen."""
        return self.accounts.get(job.gate, self.account)
