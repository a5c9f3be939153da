"""Configuration of tenants: read, applied, and never overridden by an older one."""

from __future__ import annotations

import asyncio

import pytest

from scheduler import Quota, QuotaExceeded, Rate, Scheduler
from scheduler.configuration import Configuration, read
from scheduler.core.policy import Policy
from scheduler.core.quota import Cost
from scheduler.stores.postgres import PostgresStore, configuring
from scheduler.stores.values import Request

FIRST, HAND = Quota(Rate(1, burst=1)), Quota(Rate(99, burst=9))


def limit(burst: int) -> Quota:
    return Quota(Rate(2, burst=burst))


async def quotas(store: PostgresStore) -> dict[str, tuple[int, str]]:
    """The burst of every tenant, and where it comes from."""
    found = await store.limits(None, 1000)
    return {row["name"]: (row["quota"].requests.burst, row["origin"]) for row in found if row["seen"]}


def test_a_file_is_read() -> None:
    text = """
    version = 3
    [default]
    requests = { permits = 0.1, burst = 2 }
    [tenants.acme]
    requests = { permits = 60, per = 60 }
    input_tokens = { permits = 1000 }
    concurrency = 4
    weight = 2.5
    [tenants."of two words"]
    concurrency = 1
    """
    assert read(text) == Configuration(
        3,
        {
            "acme": Quota(Rate(60, per=60), input_tokens=Rate(1000), concurrency=4, weight=2.5),
            "of two words": Quota(concurrency=1),
        },
        Quota(Rate(0.1, burst=2)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = ", "is no TOML: "),
        ("[default]", "version: is missing"),
        ("version = 0", "version: must be at least 1 and below 9223372036854775808, got 0"),
        ("version = '1'", "version: must be a whole number, got '1'"),
        ("version = 1\ntenant = {}", "tenant: is not known, only version, default, tenants, "),
        ("version = 1\ntenants = 3", "tenants: must be a table, got 3"),
        ("version = 1\n[tenants.a]\nrequest = 5", "tenants.a.request: is not known, only tier, requests, "),
        ("version = 1\n[tenants.a]\nrequests = 5", "tenants.a.requests: must be a table, got 5"),
        (
            "version = 1\n[tenants.a]\nrequests = {permits = -1}",
            "tenants.a.requests.permits: must be above 0, got -1",
        ),
        ("version = 1\n[default]\nrequests = {burst = 1}", "default.requests.permits: is missing"),
        (
            "version = 1\n[default]\nrequests = {permits = 1, burst = 0}",
            "default.requests.burst: must be at least 1, got 0",
        ),
        ("version = 1\n[default]\nweight = nan", "default.weight: must be finite, got nan"),
        ("version = 1\n[default]\nconcurrency = 1.5", "default.concurrency: must be a whole number, got 1.5"),
        ("version = 1\n[tenants.'']", "tenants: a name must have 1 to 512 characters and no NUL, got ''"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_value(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^") as caught:
        read(text)
    assert str(caught.value).startswith(message)


async def test_configuration_is_above_quotas_and_below_set_quota(dsn: str) -> None:
    async with PostgresStore(dsn) as store, Scheduler(store=store, quotas=FIRST) as scheduler:
        for name in ("known", "other", "hand"):
            await scheduler.enqueue(name, "x")
        await scheduler.set_quota("hand", HAND)
        wanted = Configuration(1, {"known": limit(5), "hand": limit(6), "new": limit(7)}, limit(8))
        assert await store.apply(wanted) == (1, 2)
        assert await store.apply(wanted) == (1, 0)
        assert (await scheduler.quote("new")).wait == 0.0
        await scheduler.enqueue("new", "x", cost=Cost(requests=7))
        await scheduler.enqueue("newer", "x", cost=Cost(requests=8))
        assert await quotas(store) == {
            "known": (5, "configuration"),
            "other": (8, "configuration"),
            "new": (7, "configuration"),
            "newer": (8, "configuration"),
            "hand": (9, "set_quota"),
        }
        # Who is left out keeps what it has, which anything may replace.
        assert await store.apply(Configuration(2, {"new": limit(3)})) == (2, 1)
        assert (await quotas(store))["known"] == (5, "quotas=")
        assert (await quotas(store))["new"] == (3, "configuration")


async def test_an_older_version_changes_nothing(dsn: str) -> None:
    async with PostgresStore(dsn) as store, Scheduler(store=store, quotas=FIRST) as scheduler:
        await scheduler.enqueue("acme", "x")
        newer, older = Configuration(7, {"acme": limit(7)}), Configuration(6, {"acme": limit(6)})
        assert await store.apply(newer) == (7, 1)
        for _ in range(3):
            assert await store.apply(older) == (7, 0)
            assert await store.apply(newer) == (7, 0)
        with pytest.raises(ValueError, match="version: 7 was applied before with another content; raise it"):
            await store.apply(Configuration(7, {"acme": limit(8)}))
        assert await quotas(store) == {"acme": (7, "configuration")}


async def test_the_newest_wins_whoever_applies_and_whoever_is_seen_meanwhile(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuring, "TENANTS", 3)
    async with PostgresStore(dsn) as one, PostgresStore(dsn) as other:

        async def see(n: int) -> None:
            await (one, other)[n % 2].submit(Request(f"t{n:02}", '"x"', FIRST, Policy(), Cost()))

        async def apply(version: int) -> None:
            await (one, other)[version % 2].apply(Configuration(version, {"t01": limit(50)}, limit(version)))

        await asyncio.gather(*(work(n) for n in range(1, 21) for work in (see, apply)))
        found = await quotas(one)
    assert found == {f"t{n:02}": (50 if n == 1 else 20, "configuration") for n in range(1, 21)}


async def test_what_failed_half_way_is_finished_by_the_same_call(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuring, "TENANTS", 2)
    async with PostgresStore(dsn) as store, Scheduler(store=store, quotas=FIRST) as scheduler:
        for n in range(5):
            await scheduler.enqueue(f"t{n}", "x")
        follow = configuring.follow

        async def fails(connection: object, after: str) -> tuple[str, int]:
            if after:
                raise ConnectionError("gone")
            return await follow(connection, after)  # type: ignore[arg-type]

        wanted = Configuration(1, default=limit(5))
        with monkeypatch.context() as broken:
            broken.setattr(configuring, "follow", fails)
            with pytest.raises(ConnectionError):
                await store.apply(wanted)
        assert [burst for burst, _ in (await quotas(store)).values()] == [5, 5, 1, 1, 1]
        assert await store.apply(wanted) == (1, 3)


async def test_jobs_that_can_never_fit_any_more_fail(dsn: str) -> None:
    async with PostgresStore(dsn) as store, Scheduler(store=store, quotas=limit(5)) as scheduler:
        large = await scheduler.enqueue("acme", "x", cost=Cost(requests=5))
        small = await scheduler.enqueue("acme", "x")
        await store.apply(Configuration(1, default=limit(4)))
        with pytest.raises(QuotaExceeded):
            await large.result()
        assert (await small.look()).position == 0  # type: ignore[attr-defined]
