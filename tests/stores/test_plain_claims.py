"""Plain jobs are claimed in one round trip: the database grants what the general rules would."""

from __future__ import annotations

import random
from collections.abc import Awaitable
from contextlib import suppress
from fractions import Fraction
from typing import Any

import asyncpg
import pytest

from scheduler import Cost, Policy, Quota, Rate
from scheduler.core.account import UNLIMITED, shape_of
from scheduler.core.quota import NS, ONE
from scheduler.errors import ErrRateLimited, QuotaExceeded
from scheduler.stores.postgres import claiming, plain
from scheduler.stores.postgres.claiming import Claimed
from scheduler.stores.postgres.rows import write_quota
from scheduler.stores.values import DONE, Again, Claim, Ended, Request
from tests.conformance.stored import VirtualStore, opened

LEASE = 7 * NS

QUOTAS = (
    Quota(Rate(2, burst=5)),
    Quota(Rate(Fraction(7, 3), per=11, burst=2)),
    Quota(Rate(3), weight=2.5),
    Quota(Rate(1, per=3600, burst=3), concurrency=2),
    Quota(Rate(NS, burst=10**12)),
    Quota(Rate(1000, burst=10), concurrency=7),
)

ROWS = (
    "select t.*, zeros::text, work::text from waitline.tenant as t order by name",
    "select * from waitline.job order by id",
)


async def rows(connection: asyncpg.Connection) -> list[Any]:
    return [list(map(tuple, await connection.fetch(query))) for query in ROWS]


def by_slot(claimed: Claimed | None) -> Any:
    """What was claimed. Jobs of one slot are in no order but that of their line."""
    if claimed is None:
        return None
    return sorted(claimed.claims, key=lambda claim: (claim.slot, claim.id)), claimed.more, claimed.moved


async def undone(connection: asyncpg.Connection, work: Awaitable[Any]) -> tuple[Any, list[Any]]:
    """Do something, and undo it: its answer, and the rows that it left."""
    transaction = connection.transaction()
    await transaction.start()
    answer = await work
    left = await rows(connection)
    await transaction.rollback()
    return answer, left


async def both(store: VirtualStore, room: int) -> tuple[bool, Claimed | None]:
    """Claim in both ways from the same state, and compare. Whether the database decided, and the claim."""
    about = store.now
    async with store._connections.connection() as connection:
        before = await rows(connection)
        (done, told), left = await undone(connection, plain.claim(connection, "w", room, about, LEASE))
        async with connection.transaction():
            general = await claiming.claim(connection, "w", room, about, LEASE)
        after = await rows(connection)
        if done:
            assert left == after
            assert by_slot(told) == by_slot(general)
            slots = [] if told is None else [claim.slot for claim in told.claims]
            assert slots == sorted(slots)
        else:
            assert left == before
        return done, general


def asked(draw: random.Random, name: str, quota: Quota, odd: float) -> Request:
    """A job as most are, or with something that few have."""
    request = Request(name, '"x"', quota, Policy(max_wait=None), ONE)
    if draw.random() < 0.2:
        request = request._replace(session=draw.choice("ab"))
    if draw.random() < 0.2:
        request = request._replace(timeout=draw.choice([NS // 3, 2 * NS, 100 * NS]))
    if draw.random() < odd:
        request = draw.choice(
            [
                request._replace(head_start=draw.choice([1, NS])),
                request._replace(cost=Cost(draw.choice([0, 2]), 5, 5)),
                request._replace(session=None, prompt=None, home="here", lease=NS),
                request._replace(session=None, prompt=None, home="there", lease=3 * NS),
            ]
        )
    return request


def ending(draw: random.Random, claim: Claim, odd: float) -> Ended | Again:
    """How a try ends."""
    if draw.random() < odd:
        return Again(claim.id, claim.tenant, claim.tries, draw.choice([0, 1, 3 * NS]), draw.random() < 0.5)
    return Ended(claim.id, claim.tenant, claim.tries, DONE, "1")


@pytest.mark.parametrize("odd", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("seed", range(3))
async def test_the_database_claims_plain_jobs_as_the_general_rules_do(
    dsn: str, seed: int, odd: float
) -> None:
    """Tenants with levels, lines and slots of all kinds, claimed early, late and with few slots."""
    draw = random.Random(f"{seed} {odd}")
    decided = left = granted = 0
    held: list[Claim] = []
    async with opened(dsn) as store:
        quotas = {f"t{number}": draw.choice(QUOTAS) for number in range(6)}
        for _ in range(60):
            await store.move(
                store.now + draw.choice([0, 1, 49_999_999, 50_000_000, 50_000_001, 333_333_333, 9 * NS])
            )
            for _ in range(draw.choice([0, 1, 4, 12])):
                name = draw.choice(list(quotas))
                with suppress(ErrRateLimited, QuotaExceeded):
                    await store.submit(asked(draw, name, quotas[name], odd))
            if draw.random() < 2 * odd:
                name = draw.choice(list(quotas))
                quotas[name] = draw.choice([*QUOTAS, Quota(Rate(2), input_tokens=Rate(5, burst=10**6))])
                await store.set_quota(name, quotas[name], quotas[name])
            if draw.random() < 0.3:  # time passes: many begin to count at the same time
                await store.move(store.now + draw.choice([1, 49_999_999, 60_000_000, 333_333_333, 5 * NS]))
            store.now += draw.choice([0, 0, -1_000_000, 1_999_999])  # a guess of the time
            done, claimed = await both(store, draw.choice([1, 3, 8, 30, 1000]))
            store.now, *_ = (await store.rows("select now from waitline.test_clock"))[0]  # type: ignore[assignment]
            claims = [] if claimed is None else claimed.claims
            decided, left, granted = decided + done, left + (not done), granted + (done and len(claims))
            held += claims
            await store.rescue(5)
            draw.shuffle(held)
            over, held = held[: len(held) // 2], held[len(held) // 2 :]
            if over:
                await store.record([ending(draw, claim, odd) for claim in over])
    assert granted > 20
    assert decided > 10
    assert left > 0


@pytest.mark.parametrize("quota", [*QUOTAS, Quota(), Quota(concurrency=2), Quota(input_tokens=Rate(1))])
async def test_the_database_reads_limits_as_the_core_does(dsn: str, quota: Quota) -> None:
    shape = shape_of(quota)
    async with opened(dsn) as store, store._connections.connection() as connection:
        read = await connection.fetchval("select waitline.shape_of($1)", write_quota(quota))
    if shape.only is None:
        assert read is None
    else:
        slots = None if shape.concurrency == UNLIMITED else shape.concurrency
        assert read == [shape.only.p, shape.only.unit, shape.only.capacity, slots]


def test_what_was_tried_in_vain_is_tried_less_often() -> None:
    """So that it costs next to nothing where it never works; where it does, it is done at once again."""
    guess = plain.Guess()
    tried = []
    for number in range(300):
        if guess.may_be_plain():
            tried.append(number)
            guess.note(plain=False)
    assert tried == [0, 2, 6, 14, 30, 62, 126, 190, 254]
    while not guess.may_be_plain():
        pass
    guess.note(plain=True)
    assert guess.may_be_plain()
