"""Conversations in PostgreSQL: the same from every process, one turn at a time, whole turns or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from agent import MemorySessions, SessionLost, UnknownSession, WrongTenant
from agent.postgres import PostgresSessions
from scheduler import Scheduler
from scheduler.stores.postgres import PostgresStore
from tests.agent.claudes import in_memory
from tests.stores.working import EXAMPLE

NS = 10**9


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": f"{text}!"}]


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """What an onlooker sees."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def test_a_conversation_survives_the_process_that_held_it(dsn: str) -> None:
    async with PostgresStore(dsn) as store:
        sessions = PostgresSessions(store)
        created = await sessions.create("acme", "u-1", {"plan": "gold"})
        async with sessions.turn(created.id) as turn:
            assert turn.history == ()
            await turn.append(said("one"))
            assert turn.history == tuple(said("one"))
    async with PostgresStore(dsn) as store:
        sessions = PostgresSessions(store)
        found = await sessions.get(created.id)
        assert (found.tenant, found.name, found.user, found.metadata) == (
            "acme", created.id, "u-1", {"plan": "gold"},
        )  # fmt: skip
        async with sessions.turn(created.id) as turn:
            await turn.append(said("two"))
            await turn.append(said("three \x00 ☃"))
        async with sessions.turn(created.id) as turn:
            assert turn.history == tuple(said("one") + said("two") + said("three \x00 ☃"))


async def test_turns_exclude_one_another_across_processes(dsn: str) -> None:
    inside, most = 0, 0

    async def talk(sessions: PostgresSessions, session_id: str, text: str) -> None:
        nonlocal inside, most
        async with sessions.turn(session_id) as turn:
            inside += 1
            most = max(most, inside)
            before = len(turn.history)
            await asyncio.sleep(0)
            await turn.append(said(text))
            assert len(turn.history) == before + 2
            inside -= 1

    async with PostgresStore(dsn) as one, PostgresStore(dsn) as other:
        both = PostgresSessions(one), PostgresSessions(other)
        chat = await both[0].named("acme", "chat")
        async with asyncio.TaskGroup() as group:
            for n in range(20):
                group.create_task(talk(both[n % 2], chat.id, str(n)))
        assert most == 1
        async with both[1].turn(chat.id) as turn:
            asked = [message["content"] for message in turn.history[::2]]
        assert sorted(asked, key=int) == [str(n) for n in range(20)]
        evens = [text for text in asked if int(text) % 2 == 0]
        assert evens == sorted(evens, key=int), "those of one process go in the order in which they asked"


async def test_a_name_is_one_session_however_many_ask_at_once(dsn: str) -> None:
    async with PostgresStore(dsn) as one, PostgresStore(dsn) as other:
        both = PostgresSessions(one), PostgresSessions(other)
        found = await asyncio.gather(*(both[n % 2].named("acme", "chat") for n in range(30)))
        assert len({session.id for session in found}) == 1
        theirs = await both[0].named("umbra", "chat")
        assert theirs.id != found[0].id
        created = await both[0].create("acme")
        assert (await both[1].named("acme", created.id)).id == created.id
        # Who knows another tenant's id gets a session of that name, and nothing of the other one.
        assert (await both[1].named("umbra", created.id)).id != created.id


async def test_a_holder_that_dies_is_waited_for_until_its_lease_is_over(dsn: str) -> None:
    async with PostgresStore(dsn, lease=0.2) as store:
        sessions = PostgresSessions(store)
        chat = await sessions.named("acme", "chat")
        dead = await store.conversations.take(chat.id, "dead", NS // 5)
        assert dead is not None
        assert dead.held
        async with sessions.turn(chat.id) as turn:
            assert await store.clock() >= dead.until
            await turn.append(said("alive"))
        assert await store.conversations.say(chat.id, "dead", 1, said("late")) is False
        async with sessions.turn(chat.id) as turn:
            assert turn.history == tuple(said("alive"))


async def test_a_turn_that_lost_its_lease_adds_nothing(dsn: str) -> None:
    async with PostgresStore(dsn, lease=0.1) as hanging, PostgresStore(dsn) as store:
        hung, sessions = PostgresSessions(hanging), PostgresSessions(store)
        chat = await sessions.named("acme", "chat")
        async with hung.turn(chat.id) as turn:
            assert hung._beating is not None
            hung._beating.cancel()
            async with sessions.turn(chat.id) as next_turn:
                await next_turn.append(said("second"))
            with pytest.raises(SessionLost, match="taken over by another turn"):
                await turn.append(said("first"))
            assert turn.history == ()
        async with sessions.turn(chat.id) as turn:
            assert turn.history == tuple(said("second"))


async def test_a_turn_that_lasts_keeps_its_lease(dsn: str) -> None:
    async with PostgresStore(dsn, lease=0.3) as store:
        sessions = PostgresSessions(store)
        chat = await sessions.named("acme", "chat")
        async with sessions.turn(chat.id) as turn:
            end = await store.clock() + NS
            while await store.clock() < end:
                other = await store.conversations.take(chat.id, "other", NS)
                assert other is not None
                assert not other.held
            await turn.append(said("slow"))


async def test_a_turn_is_written_once_however_often_it_is_tried(dsn: str) -> None:
    async with PostgresStore(dsn) as store:
        sessions, rows = PostgresSessions(store), store.conversations
        chat = await sessions.named("acme", "chat")
        for _ in range(2):
            taken = await rows.take(chat.id, "me", NS)
            assert taken is not None
            assert taken.held
        for _ in range(2):
            assert await rows.say(chat.id, "me", 1, said("one")) is True
        assert await rows.history(chat.id) == said("one")


async def test_a_lost_connection_is_ridden_out(dsn: str, connection: asyncpg.Connection) -> None:
    """What a restart of the database does to those who hold a turn."""
    async with PostgresStore(dsn) as store:
        sessions = PostgresSessions(store)
        chat = await sessions.named("acme", "chat")
        async with sessions.turn(chat.id) as turn:
            await connection.fetch(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            await turn.append(said("through it all"))
        async with sessions.turn(chat.id) as turn:
            assert turn.history == tuple(said("through it all"))


async def test_a_session_that_is_ended_while_others_wait_for_it(dsn: str) -> None:
    async with PostgresStore(dsn) as one, PostgresStore(dsn) as other:
        mine, theirs = PostgresSessions(one), PostgresSessions(other)
        chat = await mine.named("acme", "chat")
        refused = asyncio.Event()

        async def wait() -> None:
            with pytest.raises(UnknownSession):
                async with theirs.turn(chat.id):
                    raise AssertionError("it is over")
            refused.set()

        async with mine.turn(chat.id) as turn, asyncio.TaskGroup() as group:
            group.create_task(wait())
            await mine.end(chat.id)
            await turn.append(said("lost"))
            assert turn.history == ()
            await refused.wait()
        await mine.end(chat.id)
        with pytest.raises(UnknownSession):
            await theirs.get(chat.id)


async def test_whoever_is_cancelled_lets_go(dsn: str) -> None:
    async with PostgresStore(dsn) as one, PostgresStore(dsn) as other:
        mine, theirs = PostgresSessions(one), PostgresSessions(other)
        chat = await mine.named("acme", "chat")
        inside = asyncio.Event()

        async def hold() -> None:
            async with mine.turn(chat.id):
                inside.set()
                await asyncio.Event().wait()

        async def want() -> None:
            async with mine.turn(chat.id):
                raise AssertionError("it never gets there")

        holding = asyncio.create_task(hold())
        await inside.wait()
        wanting = asyncio.create_task(want())
        await asyncio.sleep(0)
        for task in (wanting, holding):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with theirs.turn(chat.id) as turn:
            await turn.append(said("free"))
    assert mine._lines == theirs._lines == {}
    assert mine._holders == theirs._holders == {}


async def test_unused_conversations_are_pruned_if_a_retention_is_stated(dsn: str) -> None:
    async with PostgresStore(dsn) as keeps, PostgresStore(dsn, keep_sessions=0.001) as store:
        sessions = PostgresSessions(store)
        names = ("idle", "awaited", "held")
        idle, awaited, held = [await sessions.named("acme", name) for name in names]
        async with Scheduler(store=store, quotas=EXAMPLE) as scheduler:
            await scheduler.enqueue("acme", "x", session="awaited")
        assert await keeps.prune() == 0
        async with sessions.turn(held.id):
            while not await store.prune():
                pass
            assert await store.prune() == 0
        with pytest.raises(UnknownSession):
            await sessions.get(idle.id)
        assert (await sessions.get(awaited.id)).name == "awaited"
        while not await store.prune():
            pass
        with pytest.raises(UnknownSession):
            await sessions.get(held.id)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("", ValueError, "name: must have 1 to 512 characters, got ''"),
        ("x" * 513, ValueError, "name: must have 1 to 512 characters, got 513: 'xxxx"),
        ("a\0b", ValueError, r"name: must be valid Unicode without NUL, got 'a\\x00b'"),
        ("\ud800", ValueError, "name: must be valid Unicode without NUL"),
        (7, TypeError, "name: must be a string, got int"),
    ],
)
async def test_names_have_1_to_512_characters(name: Any, error: type[Exception], text: str, dsn: str) -> None:
    async with PostgresStore(dsn) as store:
        for sessions in (PostgresSessions(store), MemorySessions()):
            with pytest.raises(error, match=f"^{text}"):
                await sessions.named("acme", name)
            assert (await sessions.named("acme", "é" * 512)).name == "é" * 512


async def test_what_cannot_be_kept_is_refused(dsn: str) -> None:
    async with PostgresStore(dsn) as store:
        sessions = PostgresSessions(store)
        with pytest.raises(TypeError, match=r"^metadata: ") as caught:
            await sessions.create("acme", metadata={"secret-key": object()})
        assert "secret" not in str(caught.value)
        with pytest.raises(ValueError, match=r"^user: "):
            await sessions.create("acme", "u\0")
        with pytest.raises(UnknownSession):
            await sessions.get("\0")
    with pytest.raises(TypeError, match=r"^store: "):
        PostgresSessions(dsn)  # type: ignore[arg-type]


async def test_agents_in_two_processes_hold_one_conversation(dsn: str) -> None:
    for number in (1, 2):
        async with PostgresStore(dsn) as store:
            sessions = PostgresSessions(store)
            async with in_memory(["Hello."], sessions=sessions) as (claude, agent):
                chat = await sessions.named("acme", "chat")
                with pytest.raises(WrongTenant):
                    await agent.run(chat.id, "hi", tenant="umbra")
                assert (await agent.run(chat.id, f"hi {number}", tenant="acme")).text == "Hello."
                assert len(claude.arrivals) == 1
                async with sessions.turn(chat.id) as turn:
                    assert [message["role"] for message in turn.history] == ["user", "assistant"] * number


@pytest.mark.parametrize(
    "change",
    ["name = ''", "tenant = ''", "name = repeat('x', 513)", "turns = -1", "holder = 'h'", "lease = 9"],
)
async def test_a_session_may_not_be(change: str, dsn: str, connection: asyncpg.Connection) -> None:
    await connection.execute(
        "insert into waitline.session (id, tenant, name, metadata, used)"
        " values (repeat('a', 32), 't', 'n', '{}', 0)"
    )
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(f"update waitline.session set {change}")
