"""Submit, claim and settle, the plain case: what nearly every job asks for, in one round trip each.

The database itself judges jobs of one request each, of tenants with one bucket and nothing else, by the
formula of `scheduler.core.outlook` for one bucket and the back of a line. Where it finds anything else (a
tenant that it does not know, another quota than the one that is given, a job that its policy would refuse)
it answers nothing, and `submitting` decides. In the same way it grants jobs, or leaves that to `claiming`,
and ends those that used what they cost, or leaves that to `settling`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from asyncpg import Connection

from scheduler.core.account import UNLIMITED, shape_of
from scheduler.core.quota import ONE, Quota
from scheduler.stores.postgres.claiming import AHEAD, JOBS, TENANTS, Claimed
from scheduler.stores.postgres.rows import cost_of, write_quota
from scheduler.stores.postgres.settlement import Ending, payloads
from scheduler.stores.values import Accepted, Claim, Ended, Request

MOST = (1 << 31) - 1
"""Jobs that no line ever has."""

ONE_JOB = "select waitline.submit_plain($1, $2, $3, $4, $5)"
JOBS_AT_ONCE = "select waitline.submit_plain($1, $2, $3, $4, $5, $6)"

LONGEST_PAUSE = 63
"""Claims that go the general way before one is tried in the plain way again, at most."""


@lru_cache(maxsize=4096)
def _plain(quota: Quota) -> str | None:
    """A quota as it is stored, if it is one bucket of requests and nothing else."""
    shape = shape_of(quota)
    return None if shape.only is None or shape.concurrency != UNLIMITED else write_quota(quota)


def _in_order(claim: Claim) -> tuple[int, int, int]:
    return claim.slot, claim.arrival, claim.id


def is_plain(request: Request) -> bool:
    """Whether the database may judge it: one request, and nothing that few jobs want."""
    return (
        (request.cost is ONE or request.cost == ONE)
        and not request.head_start
        and request.session is None
        and request.timeout is None
        and request.key is None
        and request.home is None
        and request.gate is None
    )


async def submit(
    connection: Connection, requests: Sequence[Request], quotas: Mapping[str, Quota]
) -> list[Accepted] | None:
    """Accept all plain requests, or none and return None: then they are for the general rules to decide.

    `quotas`: what the database had for tenants when it was last asked; who is not there has the request's.
    """
    given = {request.tenant: request.quota for request in reversed(requests)}
    names = sorted(given)
    known = [_plain(quotas.get(name) or given[name]) for name in names]
    if None in known:
        return None
    order = sorted(range(len(requests)), key=lambda index: requests[index].tenant)
    waits = [requests[index].policy.max_wait_ns for index in order]
    queues = [min(requests[index].policy.max_queue, MOST) for index in order]
    prompts = [requests[index].prompt for index in order]
    if len(order) == 1:
        found = await connection.fetch(ONE_JOB, names[0], known[0], waits[0], queues[0], prompts[0])
    else:
        lines = Counter(request.tenant for request in requests)
        jobs = [lines[name] for name in names]
        found = await connection.fetch(JOBS_AT_ONCE, names, known, jobs, waits, queues, prompts)
    return _answers(found[0][0], order)


def _answers(told: Sequence[int] | None, order: Sequence[int]) -> list[Accepted] | None:
    """What was said of jobs in another order: their numbers, those ahead, arrivals, starts."""
    if told is None:
        return None
    jobs = len(order)
    answers: list[Any] = [None] * jobs
    said = (told[begin : begin + jobs] for begin in range(0, 4 * jobs, jobs))
    for index, number, ahead, arrival, start in zip(order, *said, strict=True):
        answers[index] = Accepted(number, ahead, arrival, start, start)
    return answers


async def settle(connection: Connection, endings: Sequence[Ending]) -> list[bool] | None:
    """Record how plain tries ended, and which of them still held their jobs.

    None, and nothing recorded, if that is for the general rules to decide.
    """
    plain = [ending for ending in endings if isinstance(ending, Ended) and ending.plain]
    if len(plain) < len(endings):
        return None
    ((recorded,),) = await connection.fetch(
        "select waitline.settle_plain($1, $2, $3, $4, $5, $6, $7, $8)",
        [ending.id for ending in plain],
        [ending.tries for ending in plain],
        [ending.state for ending in plain],
        [ending.result for ending in plain],
        [ending.kind for ending in plain],
        list({ending.tenant for ending in plain}),
        list({ending.tenant for ending in plain if ending.usage is not None}),
        payloads([ending.id for ending in plain]),
    )
    if recorded is None:
        return None
    held = set(recorded)
    return [place in held for place in range(1, len(plain) + 1)]


class Guess:
    """Whether the next claim is worth a try in one round trip, by what came of the last ones.

    Tenants that are not plain may be due all the time. So after each try in vain there is none for a while:
    for twice as many claims as the last time.
    """

    def __init__(self) -> None:
        self._pause = 0
        self._left = 0

    def may_be_plain(self) -> bool:
        """Whether to try; a claim that goes the general way counts as waited for."""
        self._left -= 1
        return self._left < 0

    def note(self, *, plain: bool) -> None:
        """What came of a try."""
        self._pause = 0 if plain else min(LONGEST_PAUSE, 2 * self._pause + 1)
        self._left = self._pause


async def claim(
    connection: Connection, worker: str, slots: int, about: int, lease: int
) -> tuple[bool, Claimed | None]:
    """Grant plain jobs of tenants that are plain, and whether that was done.

    Not if any of what is due is for the general rules to decide: then all is as it was.
    """
    found = await connection.fetch(
        "select * from waitline.claim_plain($1, $2, $3, $4, $5, $6)",
        about + AHEAD,
        min(slots, TENANTS),
        slots,
        JOBS,
        worker,
        lease,
    )
    if not found:
        return True, None
    now, more, following, tenants, *_ = found.pop()
    if more is None:
        return False, None
    claims = [
        Claim(
            id=number,
            tenant=tenant,
            prompt=prompt,
            session=session,
            cost=cost_of(*cost),
            attempt=attempt,
            tries=tries,
            arrival=arrival,
            promised=promised,
            slot=slot,
            deadline=deadline,
            lease=now + lease,
        )
        for (
            *_,
            number,
            tenant,
            prompt,
            session,
            cost,
            attempt,
            tries,
            arrival,
            promised,
            slot,
            deadline,
        ) in found
    ]
    claims.sort(key=_in_order)
    more = more or tenants >= TENANTS
    return True, Claimed(claims, more, moved=bool(claims), following=(following,))
