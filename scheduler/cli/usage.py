"""What all commands know without loading an SDK: most of them start in a moment."""

from __future__ import annotations

DEFAULT_MODEL = "claude-haiku-4-5"


class UsageError(Exception):
    """The command cannot be carried out as it was given."""
