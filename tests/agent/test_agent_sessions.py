"""Sessions belong to their tenants, and can be forgotten."""

import asyncio
import pickle
from typing import Any

import pytest

from agent import MemorySessions, Reply, Session, UnknownSession, WrongTenant
from scheduler import SchedulerError
from tests.agent.claudes import SECRET, in_memory, tool


async def test_another_tenant_is_refused_before_anything_is_sent() -> None:
    async with in_memory() as (claude, agent):
        session = await agent.new_session("acme")
        with pytest.raises(WrongTenant, match="does not belong to tenant 'umbra'") as caught:
            await agent.run(session.id, "hello", tenant="umbra")
        with pytest.raises(PermissionError):
            await anext(agent.stream(session.id, "hello", tenant="umbra"))
        with pytest.raises(SchedulerError):
            await agent.end_session(session.id, tenant="umbra")
        assert claude.arrivals == []
        assert "acme" not in str(caught.value)
        assert (await agent.run(session.id, "hello", tenant="acme")).text == "Hello."


async def test_an_unknown_session_is_a_clear_error() -> None:
    async with in_memory() as (_, agent):
        with pytest.raises(UnknownSession, match="session 'nope' is unknown"):
            await agent.run("nope", "hello")
        session = await agent.new_session("acme")
        await agent.end_session(session.id)
        with pytest.raises(LookupError):
            await agent.run(session.id, "hello")


@pytest.mark.parametrize("error", [UnknownSession("s"), WrongTenant("s", "t")])
def test_errors_can_be_pickled(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))


@pytest.mark.parametrize(("tenant", "error"), [("", ValueError), (None, TypeError)])
async def test_a_tenant_has_a_name(tenant: Any, error: type[Exception]) -> None:
    async with in_memory() as (_, agent):
        with pytest.raises(error, match=r"^tenant: "):
            await agent.new_session(tenant)


async def test_names_are_the_tenants_own() -> None:
    sessions = MemorySessions()
    mine, again, theirs = [await sessions.named(tenant, "chat") for tenant in ("a", "a", "b")]
    assert mine is again
    assert len({mine.id, theirs.id}) == 2
    created = await sessions.create("a")
    assert await sessions.named("a", created.id) is created
    # Who knows another tenant's id gets a session of that name, and nothing of the other one.
    stranger = await sessions.named("b", created.id)
    assert (stranger.tenant, stranger.id == created.id) == ("b", False)


async def test_those_unused_for_longest_are_forgotten_unless_they_run() -> None:
    sessions = MemorySessions(max_sessions=2)
    first, second = await sessions.create("a"), await sessions.create("a")
    async with sessions.turn(first.id) as turn:
        third, fourth = await sessions.create("a"), await sessions.create("a")
        await turn.append([{"role": "user", "content": "kept"}])
    assert len(sessions) == 2
    assert sessions.forgotten == 2
    assert (await sessions.get(first.id)) is first
    assert (await sessions.get(fourth.id)) is fourth
    for gone in (second, third):
        with pytest.raises(UnknownSession):
            await sessions.get(gone.id)


async def test_a_session_that_is_ended_while_others_wait_for_it() -> None:
    sessions = MemorySessions()
    session = await sessions.create("a")

    async def use() -> None:
        async with sessions.turn(session.id):
            raise AssertionError("it is over")

    async with sessions.turn(session.id) as turn:
        waiting = asyncio.create_task(use())
        await asyncio.sleep(0)
        await sessions.end(session.id)
        await turn.append([{"role": "user", "content": "lost"}])
    with pytest.raises(UnknownSession):
        await waiting
    assert turn.history == ()
    assert len(sessions) == 0
    await sessions.end(session.id)


async def test_a_tool_cannot_wait_for_the_run_that_it_is_part_of() -> None:
    later: list[asyncio.Task[Reply]] = []

    async def again() -> str:
        later.append(asyncio.create_task(agent.run(one.id, "later")))
        await agent.run(other.id, "elsewhere")
        with pytest.raises(RuntimeError, match=f"^session {one.id!r}: this run of it goes on"):
            await agent.run(one.id, "nested")
        return "a view"

    answers = ([{"name": "look"}], ["Hello."])
    async with in_memory(*answers, tools=[tool("look", again)]) as (_, agent):
        one, other = await agent.new_session("acme"), await agent.new_session("acme")
        assert (await agent.run(one.id, "look")).text == "Hello."
        await later[0]  # of a task of its own it is no part
        assert (await agent.run(one.id, "last")).text == "Hello."
        async with agent.sessions.turn(one.id) as turn:
            said = [entry["content"] for entry in turn.history if entry["role"] == "user"]
    assert (said[0], *said[2:]) == ("look", "later", "last")


async def test_a_stream_that_was_left_holds_no_session() -> None:
    async with in_memory() as (_, agent):
        session = await agent.new_session("acme")
        async with agent.stream(session.id, "hello") as stream:
            await anext(stream)
            with pytest.raises(RuntimeError, match="this run of it goes on"):
                await agent.run(session.id, "nested")
        assert (await agent.run(session.id, "hello")).text == "Hello."


def test_there_is_room_for_one() -> None:
    with pytest.raises(ValueError, match=r"^max_sessions: "):
        MemorySessions(max_sessions=0)


def test_metadata_stays_out_of_the_repr() -> None:
    session = Session(id="s", tenant="t", name="s", metadata={"note": SECRET})
    assert SECRET not in repr(session)
