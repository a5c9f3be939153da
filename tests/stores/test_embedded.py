"""The embedded PostgreSQL starts, is shared, keeps its data, survives a crash and goes with its last user."""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from scheduler.stores.postgres import embedded
from scheduler.stores.postgres.embedded import Embedded, EmbeddedError
from tests.stores.servers import kill, roomy_memory


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for data. Its path is short enough for a socket, and has what must be quoted."""
    # pytest's own folders are too deep for sockets.
    found = Path(tempfile.mkdtemp(prefix="waitline-test-", dir=roomy_memory()))
    yield found / "a b+c'd%"
    shutil.rmtree(found)


async def ask(server: Embedded, statement: str) -> object:
    """Run a statement on a connection of its own."""
    connection = await asyncpg.connect(server.dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def does_not_answer(server: Embedded) -> bool:
    """Whether nobody listens any more."""
    try:
        await ask(server, "select 1")
    except OSError:
        return True
    return False


async def test_it_starts_answers_and_stops(folder: Path) -> None:
    with Embedded(folder) as server:
        assert str(await ask(server, "show server_version")).startswith("18.")
        assert await ask(server, "show listen_addresses") == "", "there is no way in by the network"
        assert await ask(server, "show fsync") == "on"
        assert await ask(server, "select 'B' < 'a'") is True, "text is sorted as Python sorts it"
        assert server.data.stat().st_mode & 0o777 == 0o700
    assert await does_not_answer(server)
    server.stop()  # once more does nothing


async def test_data_survive_a_stop_and_a_start(folder: Path) -> None:
    with Embedded(folder) as server:
        await ask(server, "create table kept as select 7 as value")
    with Embedded(folder) as server:
        assert await ask(server, "select value from kept") == 7


async def test_of_two_users_the_last_one_stops_it(folder: Path) -> None:
    first, second = Embedded(folder), Embedded(folder)
    first.start()
    second.start()
    first.stop()
    assert await ask(second, "select 1") == 1
    first.start()
    second.stop()
    assert await ask(first, "select 1") == 1
    first.stop()
    assert await does_not_answer(first)


OTHER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from scheduler.stores.postgres.embedded import Embedded
    with Embedded(Path(sys.argv[1])) as server:
        print("started", flush=True)
        sys.stdin.read()
""")


def other(folder: Path) -> "subprocess.Popen[str]":
    """Start a process that uses the folder until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


async def test_processes_that_start_at_once_share_one_server(folder: Path) -> None:
    with other(folder) as one, other(folder) as two:
        assert one.stdout is not None
        assert two.stdout is not None
        assert one.stdout.readline() == two.stdout.readline() == "started\n"
        server = Embedded(folder)
        server.start()
        one.communicate()
        two.kill()  # whoever is killed is no user any more
        two.wait()
        assert await ask(server, "select 1") == 1
        server.stop()
    assert await does_not_answer(server)


async def test_a_server_that_was_killed_recovers(folder: Path) -> None:
    with Embedded(folder) as server:
        await ask(server, "create table kept as select 7 as value")
        kill(server)
        server.start()
        assert await ask(server, "select value from kept") == 7
    assert await does_not_answer(server)


async def test_a_server_that_was_killed_can_be_given_up(folder: Path) -> None:
    with Embedded(folder) as server:
        kill(server)
    with Embedded(folder) as server:
        assert await ask(server, "select 1") == 1


async def test_half_a_cluster_is_made_anew(folder: Path) -> None:
    half = folder / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with Embedded(folder) as server:
        assert await ask(server, "select 1") == 1
    assert not half.exists()


@pytest.mark.parametrize("name", ["data", "data.new"])
def test_a_folder_of_somebody_else_s_is_left_as_it_is(folder: Path, name: str) -> None:
    """Nothing in it is renamed, deleted or added."""
    (folder / name).mkdir(parents=True)
    (folder / name / "log").write_text("of another program")
    with pytest.raises(EmbeddedError, match=f"{name}: is there, and is not of PostgreSQL"):
        Embedded(folder).start()
    assert {path.name for path in folder.rglob("*")} == {name, "log"}


async def test_a_cluster_whose_maker_was_killed_at_once_is_made_anew(folder: Path) -> None:
    (folder / "data.new" / "base").mkdir(parents=True)
    (folder / "door.lock").touch()
    with Embedded(folder) as server:
        assert await ask(server, "select 1") == 1


def test_a_start_that_is_interrupted_leaves_no_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the moment when it runs already, and nobody has said so."""
    call, server = Embedded._call, Embedded(folder)

    def interrupted(
        self: Embedded, program: str, *words: str | int | Path
    ) -> "subprocess.CompletedProcess[str]":
        done = call(self, program, *words)
        if "start" in words:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Embedded, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert (server.data / "PG_VERSION").exists()
    assert not (server.data / "postmaster.pid").exists()


async def test_no_statement_and_no_row_reaches_its_log(folder: Path) -> None:
    with Embedded(folder) as server:
        await ask(server, "create table short (prompt text check (length(prompt) < 9))")
        connection = await asyncpg.connect(server.dsn)
        for statement in (
            "insert into short values ('a secret prompt')",
            "select 'a secret prompt' from nowhere",
        ):
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute(statement)
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("insert into short values ($1)", "a secret prompt")
        await connection.close()
    log = server.log.read_text()
    assert "short_prompt_check" in log
    assert "secret" not in log


def test_what_is_missing_is_said_in_plain_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r"install waitline\[embedded\]"):
        Embedded(folder).start()


def test_a_path_that_is_too_long_is_refused(folder: Path) -> None:
    deep = folder / ("x" * 100)
    with pytest.raises(EmbeddedError, match="too long for a socket"):
        Embedded(deep).start()
    assert not deep.exists()


def test_a_path_with_a_comma_is_refused(folder: Path) -> None:
    with pytest.raises(EmbeddedError, match="a path without it"):
        Embedded(folder / "a,b").start()


def test_a_server_that_does_not_start_says_where_it_says_why(folder: Path) -> None:
    with pytest.raises(EmbeddedError) as failed:
        Embedded(folder, settings={"max_connections": "many"}).start()
    assert str(failed.value).endswith("data/log says why")
    with Embedded(folder):
        pass  # nothing is in the way of the next one


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has somebody else to run it as")
def test_root_lets_another_user_run_it(folder: Path) -> None:
    folder.parent.chmod(0o700)
    with Embedded(folder) as server:
        pass
    assert server.data.stat().st_uid != 0
    assert folder.parent.stat().st_mode & 0o777 == 0o701, "to be passed, not read"
