"""Bytes: what goes to the database together fits in one message, however much is asked for at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from scheduler import Job, JobFailed, Policy, Scheduler
from scheduler.core.quota import ONE
from scheduler.runtime import requesting, tries
from scheduler.stores.postgres import PostgresStore, batches
from scheduler.stores.postgres.settlement import Ending
from scheduler.stores.values import DONE, Accepted, Again, Claim, Ended, Request
from tests.stores.working import QUICK, working

KILOBYTE = '"' + "x" * 998 + '"'


def request(tenant: str, prompt: str = KILOBYTE) -> Request:
    return Request(tenant, prompt, QUICK, Policy(max_wait=None), ONE)


class Weighed(PostgresStore):
    """A store that notes how many bytes of prompts and results go together."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.asked: list[int] = []
        self.settled: list[int] = []

    async def _submit(self, requests: Sequence[Request], together: bool = False) -> Any:
        self.asked.append(sum(len(one.prompt or "") for one in requests))
        return await super()._submit(requests, together)

    async def _settle(self, endings: Sequence[Ending]) -> Sequence[bool]:
        self.settled.append(sum(len(one.result or "") for one in endings if isinstance(one, Ended)))
        return await super()._settle(endings)


async def claimed(store: PostgresStore, most: int) -> list[Claim]:
    found = await store.claim("w", most)
    assert found is not None
    return list(found.claims)


async def test_prompts_and_results_go_in_several_messages(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many in one as fit; one that is larger by itself goes alone."""
    monkeypatch.setattr(batches, "MOST_BYTES", 3500)
    large = json.dumps("x" * 5000)
    async with Weighed(dsn) as store:
        prompts = [*[KILOBYTE] * 6, large, KILOBYTE]
        answers = await asyncio.gather(*(store.submit(request("acme", prompt)) for prompt in prompts))
        assert all(isinstance(answer, Accepted) for answer in answers)
        assert store.asked == [3000, 3000, 5002, 1000]
        first, again, *others = await claimed(store, 8)
        ended = [Ended(one.id, one.tenant, one.tries, DONE, KILOBYTE) for one in (first, *others)]
        ended[5] = ended[5]._replace(result=large)
        lost = ended[0]._replace(tries=7)
        endings: list[Ending] = [*ended[:2], Again(again.id, again.tenant, again.tries), lost, *ended[2:]]
        assert await store.record(endings) == [True, True, True, False, True, True, True, True, True]
        assert store.settled == [3000, 3000, 5002, 1000]
        assert (await store.await_outcome(ended[5].id)).result == large


async def test_what_is_too_large_for_any_message_fails_alone(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requesting, "MOST_BYTES", 3000)
    monkeypatch.setattr(tries, "MOST_BYTES", 3000)

    async def handler(job: Job) -> str:
        return "x" * (4000 if job.prompt == "large" else 10)

    async with working(dsn, handler) as (scheduler, _):
        assert isinstance(scheduler, Scheduler)
        with pytest.raises(ValueError, match="prompt: must have at most 3000 bytes as JSON, got 6002"):
            await scheduler.submit("acme", "é" * 1000)
        large, small = [await scheduler.enqueue("acme", prompt) for prompt in ("large", "small")]
        with pytest.raises(JobFailed, match="result_is_too_large"):
            await large.result()
        assert await small.result() == "x" * 10


async def test_an_ending_that_cannot_be_kept_fails_its_job_and_no_other(dsn: str) -> None:
    async with PostgresStore(dsn) as store:
        await asyncio.gather(*(store.submit(request("acme")) for _ in range(3)))
        claims = await claimed(store, 3)
        endings = [Ended(one.id, one.tenant, one.tries, DONE, f'"{one.id}\0"') for one in claims]
        endings[0::2] = [one._replace(result="1") for one in endings[0::2]]
        assert await store.record(endings) == [True, True, True]
        outcomes = [await store.await_outcome(one.id) for one in claims]
        assert [(one.result, one.kind) for one in outcomes] == [("1", None), (None, "not_kept"), ("1", None)]
