"""Bad arguments: one clear error that names argument and value, at once, and nothing half done."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from scheduler import Cost, Policy, Quota, Rate, Scheduler, SchedulerClosed, Usage
from tests.runtime.harness import KNOWN, Notes, assert_idle, level, make, virtual

NESTED: list[Any] = []
for _ in range(100_000):
    NESTED = [NESTED]

TENANTS: list[tuple[Any, type[Exception], str]] = [
    ("", ValueError, "tenant: must not be empty, got ''"),
    (7, TypeError, "tenant: must be a string, got int"),
    (None, TypeError, "tenant: must be a string, got NoneType"),
    (b"acme", TypeError, "tenant: must be a string, got bytes"),
    ("x" * 600, ValueError, "tenant: must have at most 512 characters, got 600"),
    ("a\0b", ValueError, r"tenant: must be valid Unicode without NUL, got 'a\x00b'"),
    ("\ud800", ValueError, r"tenant: must be valid Unicode without NUL, got '\ud800'"),
]
PROMPTS: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "prompt: must be a string or a list of content blocks, got NoneType"),
    ({"role": "user"}, TypeError, "prompt: must be a string or a list of content blocks, got dict"),
    ("", ValueError, "prompt: must not be empty"),
    ([], ValueError, "prompt: must not be empty"),
    ("x" * 101, ValueError, "prompt: must have at most 100 bytes, got 101"),
    ("ü" * 51, ValueError, "prompt: must have at most 100 bytes, got 102"),
    ([{"type": "text", "text": "x" * 100}], ValueError, "prompt: must have at most 100 bytes, got "),
    ([object()], TypeError, "prompt: must be JSON content"),
    ([{"text": b"x"}], TypeError, "prompt: must be JSON content"),
    (NESTED, TypeError, "prompt: must be JSON content"),
    ([math.nan], TypeError, "prompt: must be JSON content"),
    ([{"text": -math.inf}], TypeError, "prompt: must be JSON content"),
    ("\ud800", TypeError, "prompt: must be JSON content of valid Unicode"),
    ([{"text": "\udfff"}], TypeError, "prompt: must be JSON content of valid Unicode"),
]
OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"timeout": math.nan}, ValueError, "timeout: must be finite, got nan"),
    ({"timeout": math.inf}, ValueError, "timeout: must be finite, got inf"),
    ({"timeout": -1}, ValueError, "timeout: must not be negative, got -1"),
    ({"timeout": 0}, ValueError, "timeout: must be above 0, got 0"),
    ({"timeout": "5"}, TypeError, "timeout: must be a number, got '5'"),
    ({"timeout": 1e10}, ValueError, "timeout: must be at most 4611686018 seconds, got 10000000000.0"),
    ({"timeout": True}, TypeError, "timeout: must be a number, got True"),
    ({"priority": -0.5}, ValueError, "priority: must not be negative, got -0.5"),
    ({"priority": 60.5}, ValueError, "priority: must be at most 60.0 seconds, got 60.5"),
    ({"priority": math.nan}, ValueError, "priority: must be finite, got nan"),
    ({"priority": None}, TypeError, "priority: must be a number, got None"),
    ({"priority": "high"}, TypeError, "priority: must be a number, got 'high'"),
    ({"policy": "strict"}, TypeError, "policy: must be a Policy, got 'strict'"),
    ({"policy": Policy}, TypeError, "policy: must be a Policy, got <class"),
    ({"cost": 3}, TypeError, "cost: must be a Cost, got 3"),
    ({"gate": "sonnet"}, ValueError, "gate: must be one of [''], got 'sonnet'"),
    ({"gate": 5}, TypeError, "gate: must be a str, got 5"),
    ({"gate": ["x"]}, TypeError, "gate: must be a str, got ['x']"),
]
SESSIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"session": 9}, TypeError, "session: must be a str, got 9"),
    ({"session": "s\0"}, ValueError, r"session: must be valid Unicode without NUL, got 's\x00'"),
    ({"session": "\udfff"}, ValueError, r"session: must be valid Unicode without NUL, got '\udfff'"),
]


async def refused(scheduler: Scheduler, call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    """The call raises exactly this, and leaves the scheduler as it was."""
    before, permits = await scheduler.statistics(), level(scheduler)
    with pytest.raises(kind) as caught:
        await call()
    assert type(caught.value) is kind
    assert str(caught.value).startswith(text)
    assert await scheduler.statistics() == before
    assert level(scheduler) == permits
    assert_idle(scheduler)


@virtual
async def test_every_bad_argument_of_submit_and_enqueue() -> None:
    """The whole table, for both."""
    async with make(Notes(), max_prompt_bytes=100) as scheduler:
        await scheduler.submit("acme", "x")
        for entry in (scheduler.submit, scheduler.enqueue):
            for tenant, kind, text in TENANTS:
                await refused(scheduler, lambda t=tenant, e=entry: e(t, "x"), kind, text)  # type: ignore[misc]
            for prompt, kind, text in PROMPTS:
                await refused(scheduler, lambda p=prompt, e=entry: e("acme", p), kind, text)  # type: ignore[misc]
            for options, kind, text in OPTIONS + SESSIONS:
                await refused(scheduler, lambda o=options, e=entry: e("acme", "x", **o), kind, text)  # type: ignore[misc]


@virtual
async def test_every_bad_argument_of_the_others() -> None:
    """`admit`, `quote`, `set_quota`, `statistics` and the hook check alike."""
    async with make(Notes()) as scheduler:
        await scheduler.submit("acme", "x")

        async def hook(tenant: Any) -> None:
            await scheduler.on_before_message(type("Message", (), {"tenant": tenant})())

        async def admit(tenant: Any, **options: Any) -> None:
            async with scheduler.admit(tenant, **options):
                raise AssertionError("admitted")

        calls: list[Callable[[Any], Any]] = [
            hook, admit, scheduler.quote, lambda t: scheduler.set_quota(t, KNOWN)
        ]  # fmt: skip
        for call in calls:
            for tenant, kind, text in TENANTS:
                await refused(scheduler, lambda t=tenant, c=call: c(t), kind, text)  # type: ignore[misc]
        for tenant, kind, text in TENANTS:
            if tenant is not None:
                await refused(scheduler, lambda t=tenant: scheduler.statistics(t), kind, text)  # type: ignore[misc]
        for options, kind, text in OPTIONS:
            await refused(scheduler, lambda o=options: admit("acme", **o), kind, text)  # type: ignore[misc]
            if not {"timeout", "policy"} & options.keys():
                await refused(scheduler, lambda o=options: scheduler.quote("acme", **o), kind, text)  # type: ignore[misc]
        await refused(
            scheduler, lambda: scheduler.set_quota("acme", 3), TypeError, "quota: must be a Quota, got 3"  # type: ignore[arg-type]
        )  # fmt: skip
        async with scheduler.admit("acme") as grant:
            with pytest.raises(TypeError, match="usage: must be a Usage, got Cost"):
                grant.settle(Cost())  # type: ignore[arg-type]
            grant.settle(Usage())


BAD_SETTINGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"handler": 5}, TypeError, "handler: must be an async callable, got 5"),
    ({"quotas": None}, TypeError, "quotas: must be a Quota, a mapping or a callable, got None"),
    ({"quotas": Rate(2)}, TypeError, "quotas: must be a Quota, a mapping or a callable, got Rate"),
    ({"policy": None}, TypeError, "policy: must be a Policy, a mapping or a callable, got None"),
    ({"gates": {}}, ValueError, "gates: must not be an empty mapping"),
    ({"gates": {"a": 3}}, TypeError, "gates['a']: must be a Quota or an Upstream, got 3"),
    ({"gates": {3: Quota()}}, TypeError, "gates: a name: must be a str, got 3"),
    (
        {"gates": {"a\0": Quota()}},
        ValueError,
        r"gates: a name: must be valid Unicode without NUL, got 'a\x00'",
    ),
    ({"gates": {"a" * 600: Quota()}}, ValueError, "gates: a name must have at most 512 characters, got 'aaa"),
    ({"gates": 4}, TypeError, "gates['']: must be a Quota or an Upstream, got 4"),
    ({"max_waiting": 0}, ValueError, "max_waiting: must be at least 1, got 0"),
    ({"max_running": 0}, ValueError, "max_running: must be at least 1, got 0"),
    ({"max_running": 2.0}, TypeError, "max_running: must be a whole number, got 2.0"),
    ({"max_attempts": 0}, ValueError, "max_attempts: must be at least 1, got 0"),
    ({"run_timeout": 0}, ValueError, "run_timeout: must be above 0, got 0"),
    ({"run_timeout": math.nan}, ValueError, "run_timeout: must be finite, got nan"),
    ({"run_timeout": None}, TypeError, "run_timeout: must be a number, got None"),
    ({"max_prompt_bytes": 0}, ValueError, "max_prompt_bytes: must be at least 1, got 0"),
    ({"max_head_start": -1}, ValueError, "max_head_start: must be above 0, got -1"),
]


@pytest.mark.parametrize(("settings", "kind", "text"), BAD_SETTINGS, ids=lambda v: str(v)[:30])
def test_every_bad_setting(settings: dict[str, Any], kind: type[Exception], text: str) -> None:
    """A scheduler that cannot work is not made."""

    @virtual
    async def scenario() -> None:
        arguments = {"handler": Notes(), **settings}
        with pytest.raises(kind) as caught:
            make(**arguments)
        assert str(caught.value).startswith(text)

    scenario()


class Broken(Exception):
    """What a user's callable raises."""


def breaks(tenant: str) -> Any:
    """A callable that works for one tenant only."""
    if tenant == "acme":
        return KNOWN
    raise Broken(tenant)


@pytest.mark.parametrize(
    ("quotas", "kind", "text"),
    [
        ({"acme": KNOWN}, ValueError, "tenant: no entry in quotas for 'bolt'"),
        ({"acme": KNOWN, "bolt": 3}, TypeError, "quotas['bolt']: must be a Quota, got 3"),
        (lambda t: KNOWN if t == "acme" else None, TypeError, "quotas('bolt'): must be a Quota, got None"),
        (breaks, Broken, "bolt"),
    ],
)
def test_quotas_that_do_not_know_the_tenant(quotas: Any, kind: type[Exception], text: str) -> None:
    """The tenant is not remembered, and the others are served."""

    @virtual
    async def scenario() -> None:
        async with make(Notes(), quotas) as scheduler:
            await scheduler.submit("acme", "x")
            for call in (
                lambda: scheduler.submit("bolt", "x"),
                lambda: scheduler.enqueue("bolt", "x"),
                lambda: scheduler.admit("bolt").__aenter__(),
                lambda: scheduler.quote("bolt"),
                lambda: scheduler.set_quota("bolt", KNOWN),
            ):
                await refused(scheduler, call, kind, text)
            await asyncio.gather(*(scheduler.submit("acme", "x") for _ in range(6)))

    scenario()


@pytest.mark.parametrize(
    ("policy", "kind", "text"),
    [
        ({"acme": Policy()}, ValueError, "tenant: no entry in policy for 'bolt'"),
        (lambda t: Policy() if t == "acme" else "x", TypeError, "policy('bolt'): must be a Policy, got 'x'"),
    ],
)
def test_policies_that_do_not_know_the_tenant(policy: Any, kind: type[Exception], text: str) -> None:
    """Alike; and a policy of the call's own serves instead."""

    @virtual
    async def scenario() -> None:
        async with make(Notes(), policy=policy) as scheduler:
            await scheduler.submit("acme", "x")
            await refused(scheduler, lambda: scheduler.submit("bolt", "x"), kind, text)
            await scheduler.submit("bolt", "x", policy=Policy())

    scenario()


@virtual
async def test_several_gates_must_be_named() -> None:
    """With one gate it is the default; with two, none is."""
    async with make(Notes(), gates={"haiku": Quota(), "opus": Quota()}) as scheduler:
        await scheduler.submit("acme", "x", gate="opus")
        text = "gate: must be one of ['haiku', 'opus'], got None"
        await refused(scheduler, lambda: scheduler.submit("acme", "x"), ValueError, text)
    async with make(Notes(), gates={"haiku": Quota()}) as scheduler:
        await scheduler.submit("acme", "x")


@virtual
async def test_without_a_handler_there_is_nothing_to_submit_to() -> None:
    """`submit` and `enqueue` say so before anything is charged; `admit` needs none."""
    async with make(None) as scheduler:
        async with scheduler.admit("acme"):
            pass
        for call in (scheduler.submit, scheduler.enqueue):
            text = "handler: submit and enqueue need a scheduler with one, got None"
            await refused(scheduler, lambda c=call: c("acme", "x"), TypeError, text)  # type: ignore[misc]


@virtual
async def test_before_entering_and_after_closing() -> None:
    """`SchedulerClosed`, from all four ways in; and a scheduler is entered only once."""
    scheduler = make(Notes())

    async def all_four() -> None:
        for call in (
            lambda: scheduler.submit("acme", "x"),
            lambda: scheduler.enqueue("acme", "x"),
            lambda: scheduler.admit("acme").__aenter__(),
            lambda: scheduler.on_before_message(type("Message", (), {"tenant": "acme"})()),
        ):
            with pytest.raises(SchedulerClosed):
                await call()
        assert_idle(scheduler)

    await all_four()
    async with scheduler:
        await scheduler.submit("acme", "x")
    await all_four()
    with pytest.raises(RuntimeError, match="entered only once"):
        await scheduler.__aenter__()
    assert (await scheduler.statistics()).granted == 1


@virtual
async def test_a_grant_is_entered_once() -> None:
    """Twice at a time would charge twice and settle once."""
    async with make(None) as scheduler:
        async with scheduler.admit("acme") as grant:
            with pytest.raises(RuntimeError, match="entered only once"):
                await grant.__aenter__()
        with pytest.raises(RuntimeError, match="entered only once"):
            await grant.__aenter__()
        assert level(scheduler) == 4.0
    assert_idle(scheduler)
