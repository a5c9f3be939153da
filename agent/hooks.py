"""Hooks, and the grants they return: each is settled once, whatever happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from agent.messages import Message, Reply, ToolCall
from scheduler import Grant, Job, Usage
from scheduler.upstreams.claude import NOTHING

BeforeHook = Callable[[Message], Awaitable[Grant | None]]
AfterHook = Callable[[Message, Reply], Awaitable[Any]]
ToolHook = Callable[[ToolCall], Awaitable[Grant | None]]

H = TypeVar("H", bound=Callable[..., Awaitable[Any]])
S = TypeVar("S")


class Hooks:
    """What was registered, in that order."""

    def __init__(self) -> None:
        self.before: list[BeforeHook] = []
        self.after: list[AfterHook] = []
        self.tool: list[ToolHook] = []

    async def finish(self, message: Message, reply: Reply) -> None:
        """Run the after-hooks; the first that raises stops the rest."""
        for hook in tuple(self.after):
            await hook(message, reply)


def checked(hook: H) -> H:
    """Return a hook that can be called; raises TypeError."""
    if not callable(hook):
        raise TypeError(f"hook: must be an async callable, got {hook!r}")
    return hook


class Grants:
    """The grants of one message or tool call. At the end of the block each is settled with `usage`.

    `usage` starts as nothing used, so that a veto or a cancellation before the call gives everything back;
    None means that the estimates stand.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = NOTHING
        self._held: list[Grant] = []

    async def ask(self, hooks: Iterable[Callable[[S], Awaitable[Grant | None]]], subject: S) -> None:
        """Run hooks in order and keep what they grant; the first that raises stops the rest."""
        for hook in tuple(hooks):
            grant = await hook(subject)
            if grant is None:
                continue
            if not isinstance(grant, Grant):
                raise TypeError(f"hook: must return a Grant or None, got {type(grant).__name__}")
            if not any(grant is held for held in self._held):
                self._held.append(grant)

    def give_back(self) -> None:
        """Settle them now, with nothing used: the call needs none of them."""
        self.__exit__(None, None, None)
        self._held.clear()

    def paid_to(self, books: object) -> bool:
        """Whether one of them was charged to the buckets kept there."""
        return any(grant.books is books for grant in self._held)

    def covering(self, job: Job | None) -> list[Grant | Job]:
        """The turns under which the call is made: those granted here, and the job unless one of them is its.

        They hear how the upstream took the call, and a call must not begin under one whose gate was closed.
        """
        # What covers a message of the job only passes on to it what it hears itself.
        covers: list[Grant | Job] = [grant for grant in self._held if grant.books is not job]
        if job is not None and not self.paid_to(job.books):
            covers.append(job)
        return covers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as settled:
            for grant in self._held:
                settled.callback(grant.settle, self.usage)
