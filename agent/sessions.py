"""Sessions: whose conversation it is, and what was said so far."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.errors import UnknownSession

MAX_NAME = 512
"""Characters in the name of a session, or of its tenant or user."""


def check_name(argument: str, value: str) -> str:
    """Check a text of 1 to 512 characters that any store can keep. Raises TypeError or ValueError."""
    if not isinstance(value, str):
        raise TypeError(f"{argument}: must be a string, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{argument}: must have 1 to {MAX_NAME} characters, got ''")
    if len(value) > MAX_NAME:
        raise ValueError(
            f"{argument}: must have 1 to {MAX_NAME} characters, got {len(value)}: {value[:20]!r}…"
        )
    if "\0" in value or value != value.encode("utf-8", "ignore").decode():
        raise ValueError(f"{argument}: must be valid Unicode without NUL, got {value!r}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Session:
    """A conversation of one tenant.

    `id` is unique and cannot be guessed. `name` is unique within the tenant: what jobs call it, or its id.
    `user` is an opaque id of the person behind it, sent upstream as ``metadata.user_id``; `metadata` is
    whatever the application wants its hooks to see, and stays here.
    """

    id: str
    tenant: str
    name: str
    user: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Turn(Protocol):
    """The right to continue a session: nobody else does until the block ends."""

    @property
    def history(self) -> Sequence[dict[str, Any]]:
        """Everything said so far, as Messages-API messages."""

    async def append(self, messages: Iterable[dict[str, Any]]) -> None:
        """Add a whole turn, all of it or nothing. Does nothing if the session was ended meanwhile."""


class Sessions(Protocol):
    """Where sessions are kept. An implementation may be shared by agents, and by processes."""

    async def create(
        self, tenant: str, user: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Session:
        """Begin a conversation."""

    async def get(self, session_id: str) -> Session:
        """Return a session by its id, whoever owns it; raises `UnknownSession`."""

    async def named(self, tenant: str, name: str) -> Session:
        """Return the tenant's session of this name (1 to 512 characters), and begin it if there is none."""

    def turn(self, session_id: str) -> AbstractAsyncContextManager[Turn]:
        """Wait until nobody else continues the session; raises `UnknownSession`."""

    async def end(self, session_id: str) -> None:
        """Forget a session, if there is one."""


@dataclass(slots=True, eq=False)
class _Holding:
    """Whose turn a session is: that of a task, or of none any more."""

    sessions: Sessions
    session_id: str
    task: asyncio.Task[Any] | None


_holdings: ContextVar[tuple[_Holding, ...]] = ContextVar("holdings", default=())
"""The turns that this context has, or had."""


@asynccontextmanager
async def turn_of(sessions: Sessions, session_id: str) -> AsyncIterator[Turn]:
    """A turn of a session. RuntimeError for a task that has it already, and would wait for itself."""
    task, outer = asyncio.current_task(), [held for held in _holdings.get() if held.task is not None]
    if any((held.sessions, held.session_id, held.task) == (sessions, session_id, task) for held in outer):
        raise RuntimeError(
            f"session {session_id!r}: this run of it goes on, and a further one would wait for it for ever"
        )
    async with sessions.turn(session_id) as turn:
        mine = _Holding(sessions, session_id, task)
        _holdings.set((*outer, mine))
        try:
            yield turn
        finally:
            mine.task = None


class _Kept:
    """A session in memory, which is also the turn of whoever holds its lock."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.lock = asyncio.Lock()
        self.users = 0
        self.ended = False
        self._history: list[dict[str, Any]] = []

    @property
    def history(self) -> Sequence[dict[str, Any]]:
        return tuple(self._history)

    async def append(self, messages: Iterable[dict[str, Any]]) -> None:
        if not self.ended:
            self._history += messages


class MemorySessions:
    """Sessions of one process. Beyond `max_sessions` the one unused for longest is forgotten.

    A session that is running or waited for is never forgotten. `forgotten` counts those that were.
    """

    def __init__(self, max_sessions: int = 100_000) -> None:
        if max_sessions < 1:
            raise ValueError(f"max_sessions: must be at least 1, got {max_sessions!r}")
        self.max_sessions = max_sessions
        self.forgotten = 0
        # In order of last use; a dict keeps the order of insertion.
        self._kept: dict[str, _Kept] = {}
        self._names: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def create(
        self, tenant: str, user: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Session:
        """Begin a conversation."""
        return self._create(tenant, None, user, metadata)

    async def get(self, session_id: str) -> Session:
        """Return a session by its id; raises `UnknownSession`."""
        return self._find(session_id).session

    async def named(self, tenant: str, name: str) -> Session:
        """Return the tenant's session of this name, and begin it if there is none.

        `name`: 1 to 512 characters. Raises TypeError or ValueError.
        """
        check_name("name", name)
        session_id = self._names.get((tenant, name))
        return self._create(tenant, name) if session_id is None else self._find(session_id).session

    @asynccontextmanager
    async def turn(self, session_id: str) -> AsyncIterator[Turn]:
        """Wait until nobody else continues the session; raises `UnknownSession`."""
        kept = self._find(session_id)
        kept.users += 1
        try:
            async with kept.lock:
                if kept.ended:
                    raise UnknownSession(session_id)
                yield kept
        finally:
            kept.users -= 1
            self._make_room()

    async def end(self, session_id: str) -> None:
        """Forget a session, if there is one."""
        kept = self._kept.pop(session_id, None)
        if kept is not None:
            kept.ended = True
            del self._names[kept.session.tenant, kept.session.name]

    def _create(
        self,
        tenant: str,
        name: str | None,
        user: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Session:
        session_id = secrets.token_hex(16)
        session = Session(
            id=session_id,
            tenant=tenant,
            name=session_id if name is None else name,
            user=user,
            metadata=metadata or {},
        )
        self._kept[session_id] = _Kept(session)
        self._names[tenant, session.name] = session_id
        self._make_room(spared=session_id)
        return session

    def _find(self, session_id: str) -> _Kept:
        kept = self._kept.pop(session_id, None)
        if kept is None:
            raise UnknownSession(session_id)
        self._kept[session_id] = kept
        return kept

    def _make_room(self, spared: str | None = None) -> None:
        while len(self._kept) > self.max_sessions:
            idle = (key for key, kept in self._kept.items() if not kept.users and key != spared)
            oldest = next(idle, None)
            if oldest is None:
                return
            kept = self._kept.pop(oldest)
            kept.ended = True
            del self._names[kept.session.tenant, kept.session.name]
            self.forgotten += 1
