"""Plain jobs are accepted, and end, in one round trip: the database decides as the general rules do."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import asyncpg
import pytest

from scheduler import Cost, Policy, Quota, Rate, Usage
from scheduler.core.quota import NS, ONE
from scheduler.stores.postgres import plain, settling, submitting
from scheduler.stores.values import DONE, FAILED, Accepted, Again, Claim, Ended, Request
from tests.conformance.stored import VirtualStore, opened

RATES = (
    Rate(2, burst=5),
    Rate(Fraction(7, 3), per=11, burst=2),
    Rate(1, per=3600, burst=1),
    Rate(NS, burst=10**12),
)

ROWS = """
    select substr(name, 2), zeros::text, work::text, running, waiting, due, as_of,
        case when waiting > 0 then tightest end
    from waitline.tenant where name like $1 order by name
"""
JOBS = """
    select substr(tenant, 2), state, place, arrival, promised, max_wait, cost, head_start, deadline, session,
        prompt
    from waitline.job where tenant like $1 order by id
"""


def renamed(request: Request, side: str) -> Request:
    """The same wish of a tenant of one side."""
    return request._replace(tenant=side + request.tenant)


async def same_rows(connection: asyncpg.Connection, *queries: str) -> None:
    """Both sides have the same rows, but for the names of their tenants."""
    for query in queries:
        plains, generals = [await connection.fetch(query, f"{side}%") for side in "pg"]
        assert sorted(map(str, plains)) == sorted(map(str, generals))


async def same(store: VirtualStore, requests: list[Request]) -> list[Any] | None:
    """Submit to both sides, and compare answers and rows. What the plain side said."""
    async with store._connections.connection() as connection:
        told = await plain.submit(connection, [renamed(request, "p") for request in requests], {})
        transaction = connection.transaction()
        await transaction.start()
        general = await submitting.submit(connection, [renamed(request, "g") for request in requests])
        if told is None:
            assert not all(isinstance(answer, Accepted) for answer in general)
            await transaction.rollback()  # the plain side did nothing either
        else:
            await transaction.commit()
            assert [answer[1:] for answer in told] == [
                isinstance(answer, Accepted) and answer[1:] for answer in general
            ]
        await same_rows(connection, ROWS, JOBS)
        line = await connection.fetch(
            "select tenant, place from waitline.job where place is not null order by tenant, id"
        )
        assert list(map(tuple, line)) == sorted(map(tuple, line))  # numbers follow the line
        return told


@pytest.mark.parametrize("seed", range(6))
async def test_the_database_judges_plain_jobs_as_the_general_rules_do(dsn: str, seed: int) -> None:
    """Batches of several tenants, with levels, lines and bounds of all kinds."""
    draw = random.Random(seed)
    accepted = refused = 0
    async with opened(dsn) as store:
        quotas = {f"t{number}": Quota(draw.choice(RATES)) for number in range(4)}
        for name, quota in quotas.items():
            await store.submit(Request("p" + name, '"first"', quota, Policy(), ONE))
            await store.submit(Request("g" + name, '"first"', quota, Policy(), ONE))
        for _ in range(40):
            await store.move(store.now + draw.choice([0, 1, 333_333_333, 5 * NS]))
            bounds = draw.choice([(None, 10**12), (600.0, 40), (2.5, 1000), (0.0, 1000), (600.0, 0)])
            requests = []
            for _ in range(draw.randint(1, 6)):
                name = draw.choice(list(quotas))
                policy = Policy(max_wait=bounds[0], max_queue=bounds[1])
                requests.append(Request(name, f'"{draw.random()}"', quotas[name], policy, ONE))
            if await same(store, requests) is None:
                refused += 1
            else:
                accepted += 1
            if draw.random() < 0.2:  # the worker's claims let the lines of both sides move
                await store.claim("worker", 1000)
    assert accepted > 5
    assert refused > 2


TWO = Quota(Rate(2, burst=5))


@pytest.mark.parametrize(
    "request_",
    [
        Request("new", '"x"', TWO, Policy(), ONE),
        Request("known", '"x"', Quota(Rate(3, burst=5)), Policy(), ONE),
        Request("known", '"x"', Quota(Rate(2, burst=5), concurrency=3), Policy(), ONE),
        Request("known", '"x"', Quota(Rate(2, burst=5), input_tokens=Rate(9)), Policy(), ONE),
        Request("known", '"x"', TWO, Policy(), Cost(2)),
        Request("known", '"x"', TWO, Policy(), ONE, head_start=1),
        Request("known", '"x"', TWO, Policy(), ONE, session="s"),
        Request("known", '"x"', TWO, Policy(), ONE, timeout=NS),
        Request("known", '"x"', TWO, Policy(), ONE, key="k"),
    ],
    ids=[
        "new tenant",
        "other quota",
        "slots",
        "two buckets",
        "cost",
        "priority",
        "session",
        "timeout",
        "key",
    ],
)
async def test_whatever_is_not_plain_is_left_to_the_general_rules(dsn: str, request_: Request) -> None:
    async with opened(dsn) as store:
        await store.submit(Request("known", '"x"', TWO, Policy(), ONE))
        before = await store.rows("select name, waiting, work::text from waitline.tenant")
        async with store._connections.connection() as connection:
            other = Request("known", '"x"', TWO, Policy(), ONE)
            for requests in ([request_], [request_, other]):
                assert not plain.is_plain(request_) or await plain.submit(connection, requests, {}) is None
        assert await store.rows("select name, waiting, work::text from waitline.tenant") == before
        assert (await store.submit(request_)).id  # and they accept it


ENDS = """
    select substr(tenant, 2), state, finished, result, kind, prompt, worker, lease, stop, slot
    from waitline.job where tenant like $1 order by id
"""


def ended(draw: random.Random, claim: Claim) -> Ended:
    """How a try of either side ended: the same for jobs of the same number in their lines."""
    state, result, kind = draw.choice([(DONE, '"x"', None), (FAILED, None, "ValueError")])
    usage = draw.choice([None, Usage(1, 7, 9)])
    tries = claim.tries + draw.choice([0, 0, 0, 1])  # some no longer hold their jobs
    return Ended(claim.id, claim.tenant, tries, state, result, kind, usage, plain=True)


async def same_ends(store: VirtualStore, endings: list[list[Ended]]) -> list[bool] | None:
    """End the tries of both sides, and compare answers and rows. What the plain side said."""
    async with store._connections.connection() as connection:
        told = await plain.settle(connection, endings[0])
        transaction = connection.transaction()
        await transaction.start()
        general = await settling.settle(connection, endings[1])
        if told is None:
            await transaction.rollback()  # the plain side did nothing either
        else:
            await transaction.commit()
            assert told == general
        await same_rows(connection, ROWS, ENDS)
    return told


@pytest.mark.parametrize("seed", range(4))
async def test_the_database_ends_plain_tries_as_the_general_rules_do(dsn: str, seed: int) -> None:
    """Tenants with few slots and with many, and some whose quota has changed while their jobs ran."""
    draw = random.Random(seed)
    moved = left = 0
    async with opened(dsn) as store:
        quotas = {
            f"t{number}": Quota(draw.choice(RATES[:2]), concurrency=number or None) for number in range(4)
        }
        held: dict[str, list[Claim]] = {"p": [], "g": []}
        for _ in range(30):
            await store.move(store.now + draw.choice([0, 1, 333_333_333, 5 * NS]))
            for name in draw.choices(list(quotas), k=4):
                for side in "pg":
                    await store.submit(Request(side + name, '"x"', quotas[name], Policy(), ONE))
            claimed = await store.claim("worker", 1000)
            for claim in claimed.claims if claimed is not None else ():
                held[claim.tenant[0]].append(claim)
            if draw.random() < 0.2:
                name = draw.choice(list(quotas))
                tokens = draw.choice([None, Rate(5, burst=10**6)])
                quotas[name] = Quota(
                    draw.choice(RATES[:2]), input_tokens=tokens, concurrency=draw.randint(1, 3)
                )
                for side in "pg":
                    await store.set_quota(side + name, quotas[name], quotas[name])
            pairs = [sorted(held[side], key=lambda claim: (claim.tenant[1:], claim.id)) for side in "pg"]
            assert [claim.tenant[1:] for claim in pairs[0]] == [claim.tenant[1:] for claim in pairs[1]]
            chosen = [number for number in range(len(pairs[0])) if draw.random() < 0.6]
            if not chosen:
                continue
            seeds = [draw.random() for _ in chosen]
            endings = [
                [ended(random.Random(seeds[at]), side[number]) for at, number in enumerate(chosen)]
                for side in pairs
            ]
            told = await same_ends(store, endings)
            if told is None:
                left += 1
                continue
            moved += 1
            for side, ends in zip("pg", endings, strict=True):
                over = {end.id for end, was in zip(ends, told, strict=True) if was}
                held[side] = [claim for claim in held[side] if claim.id not in over]
    assert moved > 5
    assert left > 0


async def test_a_try_that_is_not_plain_is_left_to_the_general_rules(dsn: str) -> None:
    async with opened(dsn) as store, store._connections.connection() as connection:
        ending = Ended(1, "a", 1, DONE, "1")
        assert await plain.settle(connection, [ending]) is None
        assert await plain.settle(connection, [Again(1, "a", 1)]) is None
