"""Service that degrades in declared steps, through the real SDK: another model, shorter answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import httpx2
import pytest

from agent import Reply
from scheduler import (
    Cost,
    ErrRateLimited,
    Job,
    News,
    Policy,
    Quota,
    Rate,
    Rung,
    Scheduler,
    UpstreamError,
    Usage,
)
from scheduler.core.signals import What
from scheduler.testing import Limits
from scheduler.testing.virtual import VirtualClock, run_virtual
from tests.agent.accounts import Account, behind

GATES = {"claude-opus-4-8": Quota(Rate(1, burst=2)), "claude-haiku-4-5": Quota(Rate(5, burst=5))}
OPUS = "claude-opus-4-8"
LADDER = (Rung(2, model="claude-haiku-4-5"), Rung(4, max_tokens=100))
POLICY = Policy(max_wait=20, ladder=LADDER)


class Bodies(Account):
    """An account that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__(Limits())
        self.asked: list[tuple[str, int]] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        self.asked.append((body["model"], body["max_tokens"]))
        return await super().handle_async_request(request)


def test_who_would_wait_too_long_gets_another_model_and_a_receipt() -> None:
    async def main() -> None:
        account, heard = Bodies(), list[News]()
        options: dict[str, Any] = {"gates": GATES, "policy": POLICY, "listener": heard.append}
        async with behind(account, OPUS, **options) as (_, scheduler):

            async def ask(number: int) -> Reply:
                reply: Reply = await scheduler.submit(f"t{number}", "hello", gate="claude-opus-4-8")
                return reply

            replies = await asyncio.gather(*(ask(number) for number in range(30)))
        receipts = [reply.receipt for reply in replies if reply.receipt is not None]
        rungs = Counter(receipt.rung for receipt in receipts)
        assert rungs[None] + rungs[0] + rungs[1] == 30
        assert rungs[None] in range(4, 7)  # those whose prediction was below two seconds
        assert rungs[1] in range(1, 4)  # those who gained nothing by the first rung, and waited on
        got = Counter((receipt.model or OPUS, receipt.max_tokens or 1024) for receipt in receipts)
        assert Counter(account.asked) == got
        for receipt in (receipt for receipt in receipts if receipt.rung is not None):
            assert receipt.gate == (receipt.model or OPUS)
            assert receipt.predicted is not None
            assert receipt.waited <= receipt.predicted
            assert receipt.usage == Usage(1, 10, 20)
            assert receipt.cost == Cost()
        assert Counter(news.rung for news in heard if news.what is What.RUNG) == {0: rungs[0], 1: rungs[1]}

    run_virtual(main())


def test_a_call_and_a_tenant_can_bring_their_own_ladder() -> None:
    async def main() -> None:
        account = Bodies()
        policies = {"gold": Policy(max_wait=60), "free": Policy(ladder=[Rung(0, model="claude-haiku-4-5")])}
        async with behind(account, OPUS, gates=GATES, policy=policies) as (_, scheduler):
            gate = "claude-opus-4-8"
            calls = [scheduler.submit("gold", "hello", gate=gate) for _ in range(4)]
            calls += [scheduler.submit("free", "hello", gate=gate) for _ in range(4)]
            own = Policy(ladder=[Rung(0, gate="claude-haiku-4-5", max_tokens=7)])
            calls += [scheduler.submit("gold", "hello", gate=gate, policy=own) for _ in range(2)]
            await asyncio.gather(*calls)
        assert sorted(account.asked) == [
            *[("claude-haiku-4-5", 1024)] * 4,
            *[("claude-opus-4-8", 7)] * 2,  # only its gate was another one
            *[("claude-opus-4-8", 1024)] * 4,
        ]

    run_virtual(main())


def test_when_no_rung_helps_the_last_one_is_a_refusal() -> None:
    async def main() -> None:
        account = Bodies()
        async with behind(account, OPUS, gates=GATES, policy=Policy(max_wait=5, ladder=LADDER)) as (
            _,
            scheduler,
        ):
            calls = [scheduler.submit(f"t{n}", "hello", gate="claude-opus-4-8") for n in range(60)]
            results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [error for error in results if isinstance(error, ErrRateLimited)]
        assert {error.reason for error in refused} == {"max_wait"}
        assert 15 <= len(refused) <= 35
        assert len(account.calls) == 60 - len(refused)

    run_virtual(main())


def test_a_model_that_cannot_be_paid_for_is_left_for_another_one() -> None:
    """A spending limit at one gate: whoever has a ladder goes on at the next, all others are refused."""

    async def main() -> None:
        account = Bodies()
        account.refuse = lambda at: (402, {}, None) if account.asked[-1][0] == "claude-opus-4-8" else None
        async with behind(account, OPUS, gates=GATES) as (_, scheduler):
            gate = "claude-opus-4-8"
            with pytest.raises(UpstreamError):
                await scheduler.submit("acme", "hello", gate=gate)
            with pytest.raises(ErrRateLimited, match="spend_limit"):
                await scheduler.submit("acme", "hello", gate=gate)
            reply = await scheduler.submit("acme", "hello", gate=gate, policy=POLICY)
            assert reply.receipt.model == "claude-haiku-4-5"
            assert reply.receipt.predicted > 3500

    run_virtual(main())


def test_in_the_dark_nothing_changes_but_what_is_told() -> None:
    async def main() -> None:
        account, heard = Bodies(), list[News]()
        dark = Policy(max_wait=None, ladder=LADDER, dark=True)
        options: dict[str, Any] = {"gates": GATES, "policy": dark, "listener": heard.append}
        async with behind(account, OPUS, **options) as (_, scheduler):
            calls = [scheduler.submit(f"t{n}", "hello", gate="claude-opus-4-8") for n in range(10)]
            replies = await asyncio.gather(*calls)
        assert account.asked == [("claude-opus-4-8", 1024)] * 10
        assert {reply.receipt.rung for reply in replies} == {None}
        assert {news.what for news in heard} == {What.WOULD}

    run_virtual(main())


def test_a_deferred_job_is_for_another_handler_and_no_time_limit_of_a_run() -> None:
    """The ticket resolves when that is through."""

    async def main() -> None:
        async def usual(job: Job) -> str:
            await asyncio.sleep(1)
            return "usual"

        async def later(job: Job) -> str:
            await asyncio.sleep(86_000)
            job.settle(Usage(1, 5, 5))
            return "later"

        policy = Policy(ladder=[Rung(5, defer="batch")])
        options: dict[str, Any] = {"gates": Quota(Rate(1)), "policy": policy, "clock": VirtualClock()}
        async with Scheduler(usual, deferred=later, run_timeout=10, **options) as scheduler:
            tickets = [await scheduler.enqueue("acme", "hello") for _ in range(8)]
            cancelled = await scheduler.enqueue("acme", "hello")
            assert cancelled.receipt.deferred
            await asyncio.sleep(20)
            assert cancelled.state == "running"
            assert cancelled.cancel()
            results = [await ticket.result() for ticket in tickets]
            assert results == ["usual"] * 5 + ["later"] * 3
            assert [ticket.receipt.deferred for ticket in tickets] == [False] * 5 + [True] * 3
            assert tickets[-1].receipt.usage == Usage(1, 5, 5)
            assert scheduler.engine.gates[""].levels(scheduler.engine.granted)["requests"] <= 1
            assert (await scheduler.statistics()).done == 8

    run_virtual(main())


@pytest.mark.parametrize(
    ("policy", "options", "text"),
    [
        (Policy(ladder=[Rung(1, model="tiny")]), {}, r"there is no gate 'tiny' for Rung"),
        (Policy(ladder=[Rung(1, gate="tiny")]), {}, r"there is no gate 'tiny' for Rung"),
        (Policy(ladder=[Rung(1, defer="batch")]), {}, "needs a scheduler with deferred="),
    ],
)
async def test_a_ladder_that_leads_nowhere_is_refused_at_once(
    policy: Policy, options: Any, text: str
) -> None:
    async def nothing(job: Job) -> None:
        raise AssertionError("ran")

    async with Scheduler(nothing, gates={"large": Quota()}, **options) as scheduler:
        with pytest.raises(ValueError, match=text):
            await scheduler.submit("acme", "hello", policy=policy)
        with pytest.raises(ValueError, match=text):
            await scheduler.enqueue("acme", "hello", policy=policy)


async def test_with_one_gate_for_all_models_a_rung_may_name_any() -> None:
    models = []

    async def handler(job: Job) -> None:
        models.append(job.model)
        await asyncio.sleep(0)

    gate = Quota(output_tokens=Rate(1000, burst=300))
    async with Scheduler(handler, gates=gate) as scheduler:
        policy = Policy(ladder=[Rung(0, model="tiny", max_tokens=10)])
        await asyncio.gather(*(scheduler.submit("acme", "hello", policy=policy) for _ in range(3)))
    assert models == [None, "tiny", "tiny"]
    with pytest.raises(TypeError, match="deferred: must be an async callable, got 3"):
        Scheduler(handler, deferred=3)  # type: ignore[arg-type]
