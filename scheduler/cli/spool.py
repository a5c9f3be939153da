"""An index of a prompt file, on disk: which lines are whose, and which have been answered.

The file is read once from front to back; what is kept of a line is its place, its tenant and its names. So a
file may be larger than memory, and one tenant's million lines do not stand in the way of another's ten.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from agent.sessions import MAX_NAME, check_name
from scheduler.cli.usage import UsageError

if sys.platform != "win32":
    import fcntl

MAX_LINE = 64 * 1024 * 1024
"""Bytes in a line of a prompt file."""

PAGE = 64
"""Lines of a tenant that are looked up at a time."""

START = b'{"id": '
"""How every record of a file of replies begins."""

SCHEMA = """
create table line (
    number integer primary key, place integer not null, size integer not null, tenant text not null,
    id text not null unique, session text, reply integer
);
create table malformed (number integer primary key, why text not null, told integer not null default 0);
create index line_of_tenant on line (tenant, number);
create index line_of_session on line (tenant, session, number) where session is not null;
"""

TENANTS = """
create table tenant as select min(number) as first, tenant as name from line group by tenant;
create unique index tenant_first on tenant (first);
"""


class Line(NamedTuple):
    """One prompt of the file: where it is, whose, and where its reply is if it has one."""

    number: int
    place: int
    size: int
    tenant: str
    id: str
    session: str | None
    reply: int | None


class Malformed(NamedTuple):
    """A line that cannot be sent, and why."""

    number: int
    why: str


class Spool:
    """The index of one prompt file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        # An empty name is a private database that spills to disk and is gone when it is closed.
        self._base = sqlite3.connect("", isolation_level=None)
        self._base.executescript(SCHEMA)
        self._prompts = file.open("rb")

    def close(self) -> None:
        """Give the files back."""
        self._base.close()
        self._prompts.close()

    # --- reading ------------------------------------------------------------------------------------

    def scan(self) -> Iterator[Malformed]:
        """Index the file; yields the lines that are malformed."""
        for bad in self._scan():
            self._base.execute("insert into malformed (number, why) values (?, ?)", bad)
            yield bad

    def _scan(self) -> Iterator[Malformed]:
        self._base.execute("begin")
        for number, place, raw in _lines(self._prompts):
            if not raw.strip():
                continue
            try:
                line = _checked(number, raw)
            except ValueError as error:
                yield Malformed(number, str(error))
                continue
            row = (number, place, len(raw), line["tenant"], line["id"], line.get("session"))
            try:
                self._base.execute("insert into line values (?, ?, ?, ?, ?, ?, null)", row)
            except sqlite3.IntegrityError:
                yield Malformed(number, f'"id": {line["id"]!r} was used by an earlier line')
        self._base.execute("commit")
        self._base.executescript(TENANTS)

    def prompt(self, line: Line) -> Any:
        """Read a line's prompt."""
        self._prompts.seek(line.place)
        return json.loads(self._prompts.read(line.size))["prompt"]

    # --- what is there ------------------------------------------------------------------------------

    def tenants(self) -> Iterator[tuple[str, int]]:
        """Tenants with unanswered lines, and how many, in the order of their first line."""
        after = 0
        while rows := self._base.execute(
            "select first, name from tenant where first > ? order by first limit ?", (after, PAGE)
        ).fetchall():
            after = rows[-1][0]
            for _, name in rows:
                (count,) = self._base.execute(
                    "select count(*) from line where tenant = ? and reply is null", (name,)
                ).fetchone()
                if count:
                    yield name, count

    def unanswered(self, tenant: str) -> Iterator[Line]:
        """A tenant's unanswered lines, in the order of the file."""
        after = 0
        while rows := self._base.execute(
            "select * from line where tenant = ? and number > ? and reply is null order by number limit ?",
            (tenant, after, PAGE),
        ).fetchall():
            yield from map(Line._make, rows)
            after = rows[-1][0]

    def counts(self) -> tuple[int, int]:
        """All good lines, and those that have a reply."""
        total, answered = self._base.execute("select count(*), count(reply) from line").fetchone()
        return total, answered

    def untold(self) -> Iterator[Malformed]:
        """Malformed lines that the file of replies does not speak of yet."""
        yield from map(
            Malformed._make, self._base.execute("select number, why from malformed where not told")
        )

    # --- what was answered ----------------------------------------------------------------------------

    def answered(self, line_id: str, place: int) -> None:
        """Note where the reply to a line is."""
        self._base.execute("update line set reply = ? where id = ?", (place, line_id))

    def told(self, number: int) -> None:
        """Note that the file of replies speaks of a malformed line."""
        self._base.execute("update malformed set told = 1 where number = ?", (number,))

    def earlier_in_session(self, line: Line) -> list[Line]:
        """The answered lines of the same session before this one."""
        rows = self._base.execute(
            "select * from line where tenant = ? and session = ? and number < ? and reply is not null"
            " order by number",
            (line.tenant, line.session, line.number),
        )
        return list(map(Line._make, rows))

    def is_last_of_session(self, line: Line) -> bool:
        """Whether no line of the same session is left to be answered after this one."""
        row = self._base.execute(
            "select 1 from line where tenant = ? and session = ? and number > ? and reply is null limit 1",
            (line.tenant, line.session, line.number),
        ).fetchone()
        return row is None


class Replies:
    """The output file: one JSON object a line, in the order in which they came."""

    def __init__(self, path: Path, spool: Spool) -> None:
        self._file = path.open("a+b")
        try:
            self._lock(path)
            self._read(path, spool)
        except BaseException:
            self._file.close()
            raise

    def _lock(self, path: Path) -> None:
        """Be the only run that writes the file, until it is closed or this process is gone."""
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--out: another run writes {path}") from None

    def _read(self, path: Path, spool: Spool) -> None:
        """Learn what is answered. A record cut short when an earlier run was killed is taken away."""
        raw = b"\n"
        for number, place, raw in _lines(self._file):
            try:
                known = json.loads(raw)
                line = known["line"]
                if "reply" in known:
                    spool.answered(known["id"], place)
                elif known["id"] is None:
                    spool.told(line)
            except (ValueError, KeyError, TypeError, RecursionError, OverflowError, sqlite3.Error) as error:
                if isinstance(error, ValueError) and _is_torn(raw):
                    self._file.truncate(place)
                    return
                raise UsageError(f"--out: line {number} of {path} is not a reply of an earlier run") from None
        if not raw.endswith(b"\n"):
            self._file.write(b"\n")

    def write(self, record: dict[str, Any]) -> int:
        """Append a record and return where it is; it is in the file when this returns."""
        self._file.seek(0, 2)
        place = self._file.tell()
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        return place

    def read(self, place: int) -> str:
        """The reply at a place."""
        self._file.seek(place)
        return str(json.loads(self._file.readline())["reply"])

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Number, place and bytes of each line; of an overlong one as much as shows that it is."""
    file.seek(0)
    number = place = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        yield number, place, raw
        place += len(raw)
        while len(raw) > MAX_LINE and not raw.endswith(b"\n"):
            raw = file.readline(MAX_LINE + 1)
            place += len(raw)


def _is_torn(raw: bytes) -> bool:
    """Whether a line that is not JSON may be the beginning of a record, and the file's last line."""
    whole = raw.endswith(b"\n") or len(raw) > MAX_LINE
    return not whole and (raw.startswith(START) or START.startswith(raw))


def _checked(number: int, raw: bytes) -> dict[str, Any]:
    """A line's fields, with its id filled in; ValueError says what is wrong, without showing the prompt."""
    if len(raw) > MAX_LINE:
        raise ValueError(f"is longer than {MAX_LINE} bytes")
    try:
        line = json.loads(raw, object_pairs_hook=_unambiguous, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    if not isinstance(line, dict):
        raise ValueError('is not an object like {"tenant": …, "prompt": …}')
    prompt = line.get("prompt")
    _check_name("tenant", line.get("tenant"))
    if "session" in line:
        _check_name("session", line["session"])
    if not isinstance(prompt, (str, list)) or not prompt:
        raise ValueError('"prompt": must be a text or a list of content, and not empty')
    identity = line.get("id", f"line-{number}")
    if isinstance(identity, bool) or not isinstance(identity, (str, int)):
        raise ValueError('"id": must be a string or a whole number')
    if str(identity) != str(identity).encode("utf-8", "ignore").decode():
        raise ValueError('"id": must be valid Unicode')
    return {**line, "id": str(identity)}


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Of two tenants the last one would pay, and not everybody reads it so."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("names a field of an object twice")
    return found


def _no_number(_: str) -> None:
    raise ValueError("is not JSON: NaN and Infinity are no numbers there")


def _check_name(field: str, value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
        raise ValueError(f'"{field}": must be a string of 1 to {MAX_NAME} characters')
    check_name(f'"{field}"', value)
