"""Plain jobs are accepted in one round trip: the database judges them as the general rules do."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from scheduler import Cost, Policy, Quota, Rate
from scheduler.core.quota import NS, ONE
from scheduler.stores.postgres import plain, submitting
from scheduler.stores.values import Accepted, Request
from tests.conformance.stored import VirtualStore, opened

RATES = (
    Rate(2, burst=5),
    Rate(Fraction(7, 3), per=11, burst=2),
    Rate(1, per=3600, burst=1),
    Rate(NS, burst=10**12),
)

ROWS = """
    select substr(name, 2), zeros::text, work::text, running, waiting, due, as_of
    from waitline.tenant where name like $1 order by name
"""
JOBS = """
    select substr(tenant, 2), state, place, arrival, promised, max_wait, cost, head_start, deadline, session,
        prompt
    from waitline.job where tenant like $1 order by id
"""


def renamed(request: Request, side: str) -> Request:
    """The same wish of a tenant of one side."""
    return replace(request, tenant=side + request.tenant)


async def same(store: VirtualStore, requests: list[Request]) -> list[Any] | None:
    """Submit to both sides, and compare answers and rows. What the plain side said."""
    async with store._connections.connection() as connection:
        told = await plain.submit(connection, [renamed(request, "p") for request in requests])
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
        for query in (ROWS, JOBS):
            plains, generals = [await connection.fetch(query, f"{side}%") for side in "pg"]
            assert sorted(map(str, plains)) == sorted(map(str, generals))
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
            assert not plain.is_plain(request_) or await plain.submit(connection, [request_]) is None
            other = Request("known", '"x"', TWO, Policy(), ONE)
            assert not plain.is_plain(request_) or await plain.submit(connection, [request_, other]) is None
        assert await store.rows("select name, waiting, work::text from waitline.tenant") == before
        assert (await store.submit(request_)).id  # and they accept it
