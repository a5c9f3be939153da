"""What all commands know without loading an SDK: most of them start in a moment."""

from __future__ import annotations

DEFAULT_MODEL = "claude-haiku-4-5"


class UsageError(Exception):
    """The command cannot be carried out as it was given."""


def first_of(error: BaseException) -> BaseException:
    """What went wrong first, of all that a group of tasks ended with."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
