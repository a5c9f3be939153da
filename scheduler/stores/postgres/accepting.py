"""Jobs come to a store, one by one or together, and are cancelled."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from asyncpg import Connection

from scheduler.core.signals import News
from scheduler.stores.postgres import plain, settling, submitting
from scheduler.stores.postgres.batches import Batches
from scheduler.stores.postgres.connections import Unkept, discreet, patiently
from scheduler.stores.postgres.hearing import Hearing
from scheduler.stores.postgres.keeping import Keeping
from scheduler.stores.values import Accepted, Answer, Request

BATCH = 250
"""Jobs in one transaction: so few that the database works on some while their callers make the next ones."""


def _weight(request: Request) -> int:
    return len(request.prompt or "")  # JSON, and so ASCII


class Accepting(Keeping):
    """The store of jobs that are asked for."""

    hearing: Hearing

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._submits: Batches[Request, Accepted] = Batches(self._submit, BATCH, self._unwanted, _weight)
        self._together: Batches[Sequence[Request], Sequence[Answer]] = Batches(
            self._submit_together, 1, self._all_unwanted
        )

    def submit(self, request: Request) -> Coroutine[Any, Any, Accepted]:
        """``await store.submit(request)``: commit a job, or raise the reason for which it was refused."""
        return self._submits.do(request, self.group)

    async def submit_together(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Commit jobs in one transaction; those that are refused are answered with the reason.

        Raises `Uncounted` if any of them must be counted first, and then none is accepted.
        """
        return await self._together.do(requests, self.group)

    def _unwanted(self, request: Request, answer: Answer) -> None:
        if isinstance(answer, Accepted) and answer.new:
            self.cancel_soon(answer.id, request.tenant)

    def _all_unwanted(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        for request, answer in zip(requests, answers, strict=True):
            self._unwanted(request, answer)

    async def _submit_together(self, calls: Sequence[Sequence[Request]]) -> Sequence[Sequence[Answer]]:
        return [await self._submit(requests, together=True) for requests in calls]

    async def _submit(self, requests: Sequence[Request], together: bool = False) -> Sequence[Answer]:
        if self._may_be_plain(requests):
            answers = None
            with suppress(Unkept):  # or a time that is too far away for the database's arithmetic
                async with self._connections.connection() as connection:
                    answers = await plain.submit(connection, requests, self.quotas)
            if answers is not None:
                for request in requests:
                    if request.tenant not in self.quotas:
                        self.quotas.see(request.tenant, request.quota)
                return answers
        async with self._connections.transaction() as connection:
            news: list[News] = []
            found = await submitting.submit(connection, requests, self.quotas, news, together=together)
        self.hearing.publish(news)
        return found

    def _may_be_plain(self, requests: Sequence[Request]) -> bool:
        return not self.hearing.gates and all(map(plain.is_plain, requests))

    async def submit_in(self, connection: Connection, requests: Sequence[Request]) -> Sequence[Answer]:
        """The same in the caller's own transaction, on whose commit the jobs become real."""
        with discreet():
            if self._may_be_plain(requests):
                answers = await plain.submit(connection, requests, self.quotas)
                if answers is not None:
                    return answers
            news: list[News] = []
            found = await submitting.submit(connection, requests, None, news, together=True)
        self.hearing.publish(news)
        return found

    async def cancel(self, job: int, tenant: str) -> int | None:
        """Cancel a waiting job, or have a running one stopped: its state before, None if it is over."""
        async with self._connections.transaction() as connection:
            return await settling.stop(connection, job, tenant)

    def cancel_soon(self, job: int, tenant: str) -> None:
        """Cancel a job for a caller that cannot wait, as soon as the database can be reached."""
        self.group.create_task(patiently(partial(self.cancel, job, tenant)))
