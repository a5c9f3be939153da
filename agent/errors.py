"""What the agent raises on purpose, beside what hooks and the upstream raise."""

from __future__ import annotations

from scheduler import SchedulerError


class UnknownSession(SchedulerError, LookupError):
    """There is no session of this id: it never was, it was ended, or it was forgotten for want of room."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id

    def __str__(self) -> str:
        return f"session {self.session_id!r} is unknown"


class SessionLost(SchedulerError):
    """A turn held its session for longer than its lease, without renewing it, and another one took over.

    What it wanted to add is not kept: the conversation has gone on without it.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id

    def __str__(self) -> str:
        return f"session {self.session_id!r} was taken over by another turn"


class WrongTenant(SchedulerError, PermissionError):
    """The session belongs to another tenant than the one that wants to use it."""

    def __init__(self, session_id: str, tenant: str) -> None:
        self.session_id = session_id
        self.tenant = tenant

    def __reduce__(self) -> tuple[type[WrongTenant], tuple[str, str]]:
        # PermissionError is an OSError, which keeps no `args` for a subclass that has its own __init__.
        return type(self), (self.session_id, self.tenant)

    def __str__(self) -> str:
        return f"session {self.session_id!r} does not belong to tenant {self.tenant!r}"


class TooManyTurns(SchedulerError):
    """The model still wanted to call tools after `max_turns` messages of one run."""

    def __init__(self, tenant: str, max_turns: int) -> None:
        self.tenant = tenant
        self.max_turns = max_turns

    def __str__(self) -> str:
        return f"tenant {self.tenant!r}: the run still wanted tools after {self.max_turns} messages"
